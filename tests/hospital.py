"""A made hospital export: what a PACS gives, with the traps of such exports, and names in every place that has room.

    python tests/hospital.py FOLDER --studies 200

writes it, makes a dataset with hashed keys of it, and goes on to duplicates, split, labels and exports; then it looks
for the names in all that was written and said. `tests/test_hospital.py` does the same with a few studies.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import io
import random
import re
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydicom
import tiny
import zarr
from label_builders import rtstruct_dataset, written
from scipy import ndimage

import dskprep
from dskprep.pipeline import page
from dskprep.settings import PrepConfig
from dskprep.synthetic import scanner
from dskprep.synthetic.phantom import PADDING_HU, Phantom, make_phantom
from dskprep.volume import Volume

GRID: dict[str, Any] = {"spacing_mm": (4.0, 2.0, 2.0), "shape": (72, 172, 172)}
THICK: dict[str, Any] = {"spacing_mm": (6.0, 2.0, 2.0), "shape": (48, 172, 172)}
SETTINGS = PrepConfig(spacing_mm=(2.0, 2.0, 2.0))
SYLLABLES = "quor zimb velka thyr droz flem jaxo wulf krysz mbeki ostro pjel".split()
GIVEN = ("Ottokar", "Zdzisława", "Käthchen", "Bartholomew", "Anneliese", "Théodora", "Wilhelmina")


@dataclass(frozen=True)
class Person:
    """Who an export says somebody is."""

    surname: str
    given: str
    number: str

    @property
    def folder(self) -> str:
        return f"{self.surname.upper()}_{self.given}"


@dataclass
class Hospital:
    """What was written: the persons, the folders of each trap, and the words that nothing may repeat."""

    source: Path
    labels: Path
    persons: list[Person] = field(default_factory=list)
    traps: dict[str, list[str]] = field(default_factory=dict)

    @property
    def words(self) -> list[str]:
        names = [f"{p.surname}^{p.given}" for p in self.persons]
        others = (w for p in self.persons for w in (p.surname, p.number, f"Acc{p.number}", f"Ward-{p.surname}"))
        return [*dict.fromkeys([*names, *others])]

    @property
    def tokens(self) -> list[str]:
        """The words without which none of the others can be written."""
        return [*dict.fromkeys(word for p in self.persons for word in (p.surname, p.number))]


def person(number: int) -> Person:
    rng = random.Random(number)
    surname = "".join(rng.sample(SYLLABLES, 3)).capitalize()
    return Person(surname, GIVEN[number % len(GIVEN)], f"MRN{rng.randrange(10**7, 10**8)}X")


def write_hospital(folder: Path, *, studies: int = 12, seed: int = 0) -> Hospital:
    """Write the export: at least the twelve studies of the traps, and more of patients without any."""
    made = Hospital(folder / "export", folder / "for-review")
    who = [person(seed * 1000 + i) for i in range(studies)]
    add: Callable[..., None] = lambda trap, *places: made.traps.setdefault(trap, []).extend(places)  # noqa: E731
    chest = [make_phantom(seed=seed + i, **GRID) for i in range(9)]

    add("kernels", _write(made, who[0], 0, chest[0], ConvolutionKernel="B30f"))
    add("kernels", _write(made, who[0], 0, _sharper(chest[0]), series="1", ConvolutionKernel="B70f"))
    add("thicknesses", _write(made, who[1], 1, chest[1]))
    add("thicknesses", _write(made, who[1], 1, make_phantom(seed=seed + 1, **THICK), series="1"))
    add("repeat", _write(made, who[2], 2, chest[2]), _write(made, who[2], 2, chest[2], series="sent again"))
    add("anonymised twice", _write(made, who[3], 3, chest[3]), _write(made, who[4], 103, chest[3]))
    namesake = Person(who[5].surname, who[5].given, who[6].number)
    add("one name", _write(made, who[5], 5, chest[4]), _write(made, namesake, 6, chest[5], study="2"))
    married = Person(who[8].surname, who[7].given, who[8].number)
    add("two names", _write(made, who[7], 7, chest[6]), _write(made, married, 8, chest[7]))
    made.persons = [*(who[i] for i in range(studies) if i not in (6, 8)), namesake, married]
    add("localizer", _write(made, who[9], 9, chest[8], with_localizer=True))
    add("localizer alone", _write_localizer(made, who[10], chest[8]))
    add("gap", _write(made, who[10], 10, chest[8], left_out=30))
    _write_archive(made, who[11], make_phantom(seed=seed + 11, **GRID))
    for i in range(12, studies):
        _write(made, who[i], i, make_phantom(seed=seed + i, **GRID))
    _write_structures(made, who[0], chest[0])
    return made


def _sharper(phantom: Phantom) -> Phantom:
    """The same acquisition by a sharper kernel."""
    array = phantom.volume.array
    inside = np.maximum(array, -1024).astype(np.float32)
    sharp = np.where(array == PADDING_HU, array, 2 * inside - ndimage.gaussian_filter(inside, (0, 0.7, 0.7)))
    return Phantom(Volume(np.rint(sharp).clip(-32000, 3071).astype(np.int16), phantom.volume.affine), phantom.lungs)


def _fill(content: bytes, who: Person, **attributes: Any) -> bytes:
    """Put a person into every element of a header that has room for one."""
    dataset = pydicom.dcmread(io.BytesIO(content))
    dataset.SpecificCharacterSet = "ISO_IR 192"
    name = f"{who.surname}^{who.given}"
    for keyword in "PatientName OtherPatientNames PatientBirthName ReferringPhysicianName OperatorsName".split():
        setattr(dataset, keyword, name)
    for keyword in "StudyDescription SeriesDescription PatientComments ImageComments ProtocolName StationName".split():
        setattr(dataset, keyword, f"{who.surname} {who.given}"[: 16 if keyword == "StationName" else 60])
    dataset.InstitutionName = dataset.InstitutionalDepartmentName = f"Ward-{who.surname}"
    dataset.PatientID, dataset.AccessionNumber, dataset.PatientBirthDate = who.number, f"Acc{who.number}", "19310517"
    dataset.OtherPatientIDs, dataset.BodyPartExamined = who.number, who.surname.upper()
    dataset.private_block(0x0009, "DSKPREP_PHANTOM", create=True).add_new(0x03, "LO", name)
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def _write(
    made: Hospital,
    who: Person,
    seed: int,
    phantom: Phantom,
    *,
    study: str = "1",
    series: str = "0",
    left_out: int | None = None,
    with_localizer: bool = False,
    **attributes: Any,
) -> str:
    """Write a series of a person as <person>/<study>/<series>/<person>_<n>.dcm; return the folder below the export."""
    place = f"{who.folder}/CT {study} {who.surname}/{series} {who.given}"
    if series == "1":
        attributes["SeriesInstanceUID"] = f"1.2.826.0.1.3680043.10.543.{seed}.1"
    files = list(scanner.series_files(phantom, name=f"study {seed}", seed=seed))
    if with_localizer:
        files.append(scanner.localizer_file(phantom, name=f"study {seed}", seed=seed))
    folder = made.source / place
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, content) in enumerate(files):
        if number != left_out:
            more = {} if name.startswith("SCOUT") else attributes
            (folder / f"{who.folder}_{number:04}.dcm").write_bytes(_fill(content, who, **more))
    (folder / f"report of {who.surname}.txt").write_text(f"{who.given} {who.surname}, {who.number}")
    return place


def _write_localizer(made: Hospital, who: Person, phantom: Phantom) -> str:
    place = f"{who.folder}/scout of {who.surname}"
    (made.source / place).mkdir(parents=True)
    _, content = scanner.localizer_file(phantom, name="scout", seed=77)
    (made.source / place / f"{who.folder}.dcm").write_bytes(_fill(content, who))
    return place


def _write_archive(made: Hospital, who: Person, phantom: Phantom) -> None:
    files = scanner.series_files(phantom, name="archive", seed=11)
    members = {f"{who.folder}/{who.surname}_{name}": _fill(content, who) for name, content in files}
    (made.source / f"{who.folder}.zip").write_bytes(tiny.zipped(members))


def _write_structures(made: Hospital, who: Person, phantom: Phantom) -> None:
    """Write an RTSTRUCT of a series, in the export and for review, and a table of points whose reader has a name."""
    grid = phantom.volume.grid
    k, j, i = (n // 2 for n in grid.shape)
    contours = [
        [grid.to_patient((z, j + dy, i + dx)) for dy, dx in ((-8, -8), (-8, 8), (8, 8), (8, -8))]
        for z in range(k - 3, k + 4)
    ]
    first = next(iter((made.source / made.traps["kernels"][0]).glob("*.dcm")))
    slice_ = pydicom.dcmread(first)
    dataset = rtstruct_dataset({"GTV": contours})
    (reference,) = dataset.ReferencedFrameOfReferenceSequence
    reference.FrameOfReferenceUID = dataset.FrameOfReferenceUID = slice_.FrameOfReferenceUID
    (series,) = reference.RTReferencedStudySequence[0].RTReferencedSeriesSequence
    series.SeriesInstanceUID = slice_.SeriesInstanceUID
    series.ContourImageSequence[0].ReferencedSOPInstanceUID = slice_.SOPInstanceUID
    dataset.StructureSetROISequence[0].ReferencedFrameOfReferenceUID = slice_.FrameOfReferenceUID
    content = _fill(written(dataset), who, StructureSetLabel=f"{who.surname}"[:16])
    place = f"{who.folder}/RT {who.surname}"
    for folder in (made.source / place, made.labels):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"RS of {who.surname}.dcm").write_bytes(content)
    made.traps["structures"] = [place]
    x, y, z = grid.to_patient((k, j, i))
    row = f"{slice_.SeriesInstanceUID},{x},{y},{z},7.5,{who.given} {who.surname},{who.number}"
    (made.labels / f"nodules {who.surname}.csv").write_text(
        f"seriesuid,coordX,coordY,coordZ,diameter_mm,reader,patient\n{row}\n"
    )


class Overheard(dskprep.Observer):
    """All that a run tells while it goes on: its events, Dask's tasks, events and logs, and the metrics."""

    def __init__(self, client: Any) -> None:
        self._client, self.said = client, []

    def on_note(self, message: str) -> None:
        self.said.append(message)

    def on_patient(self, summary: dskprep.Summary, records: Sequence[dskprep.Record]) -> None:
        self.said += [repr(summary.as_dict()), *(repr(record) for record in records)]
        self.said.append(repr(self._client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.tasks))))
        link = self._client.dashboard_link.rpartition("/")[0]
        self.said.append(urllib.request.urlopen(f"{link}/metrics").read().decode())

    def on_end(self, summary: dskprep.Summary) -> None:
        self.said += [repr(summary.as_dict()), repr(self._client.get_events(page.RUN_TOPIC))]
        self.said += [repr(self._client.get_worker_logs()), repr(self._client.get_scheduler_logs())]


def go_through(made: Hospital, folder: Path) -> dict[str, Any]:
    """Plan, run, annotate, duplicates, split and export; return what each says, and write all that is said to logs."""
    target, out = str(folder / "dataset"), folder / "given away"
    said: dict[str, Any] = {"target": target}
    said["plan"] = dskprep.plan(made.source, settings=SETTINGS, sample=0)
    with dskprep.local_client(2) as client:
        heard = Overheard(client)
        how: dict[str, Any] = {"settings": SETTINGS, "client": client, "observers": [heard]}
        said["run"] = dskprep.run(
            made.source, target, keys="hashed", mapping=folder / "who.csv", labels=["RS of *"], **how
        )
        said["again"] = dskprep.run(made.source, target, **how)
        said["labels"] = dskprep.annotate(target, made.labels, client=client)
        said["heard"] = heard.said
    dataset = dskprep.open_dataset(target)
    said["duplicates"] = dataset.duplicates()
    said["split"] = dataset.split(folds=2, by=said["duplicates"].groups)
    said["split"].save("v1")
    for kind in ("nnunet", "monai", "croissant"):
        said[kind] = dskprep.export(kind, target, out / kind, split="v1")
    table = pd.read_csv(folder / "who.csv")
    said["keys"] = {str(Path(source).relative_to(made.source)): key for key, source in table.itertuples(index=False)}
    (folder / "logs").mkdir()
    told = (repr(said[name]) for name in said if name not in ("plan", "keys"))  # these name folders, to their user
    (folder / "logs" / "heard.txt").write_text("\n".join([*heard.said, *told]))
    return said


def search_by_hand(folder: Path, words: Sequence[str]) -> Iterator[tuple[Path, str]]:
    """Another search than the audit's: each word, in lower case, in all that other programs make of each file."""
    forms = {word.lower().encode(coding) for word in words for coding in ("utf-8", "utf-16-le")}
    for path in sorted(folder.rglob("*")):
        contents = [str(path.relative_to(folder)).encode()]
        if path.is_file():
            contents += _readings(path)
        for content in contents:
            lower = content.lower()
            yield from ((path, form.decode("latin-1")) for form in forms if form in lower)


def _readings(path: Path) -> Iterator[bytes]:
    content = path.read_bytes()
    yield content
    if path.suffix == ".gz":
        yield gzip.decompress(content)
    elif path.suffix == ".parquet":
        yield pd.read_parquet(path).to_csv().encode()
    elif path.suffix in (".html", ".json", ".txt"):
        text = content.decode()
        yield re.sub(r"\\u([0-9a-f]{4})", lambda found: chr(int(found[1], 16)), text).encode(errors="replace")
        for run in re.findall(r"[A-Za-z0-9+/=]{40,}", text):
            decoded = base64.b64decode(run[: len(run) // 4 * 4])
            yield decoded
            for at in (m.start() for m in re.finditer(rb"\x78[\x01\x5e\x9c\xda]", decoded)):
                try:
                    yield zlib.decompress(decoded[at:])
                except zlib.error:
                    continue
    if path.name == "zarr.json" and b'"array"' in content:
        yield zarr.open_array(path.parent, mode="r")[...].tobytes()


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("folder", type=Path)
    words.add_argument("--studies", type=int, default=200)
    given = words.parse_args()
    clock: Mapping[str, float] = {}
    started = time.monotonic()
    made = write_hospital(given.folder, studies=given.studies)
    clock = {"written": time.monotonic() - started}
    said = go_through(made, given.folder)
    clock |= {"gone through": time.monotonic() - started}
    for name in ("run", "again", "labels", "duplicates", "split", "nnunet", "monai", "croissant"):
        print(name, repr(said[name])[:600])
    for place in ("dataset", "given away", "logs"):
        searched = list(dskprep.audit(given.folder / place, made.words))
        unclean = [s for s in searched if not s.is_clean]
        print(
            place, len(searched), "searched", unclean[:5], list(search_by_hand(given.folder / place, made.tokens))[:5]
        )
    print(clock | {"searched": time.monotonic() - started})


if __name__ == "__main__":
    main()

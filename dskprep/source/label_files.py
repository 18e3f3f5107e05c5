"""Which label objects a folder or bucket holds: each file that may be one is a source of labels of its own."""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import itertools
import json
import numbers
import re
import string
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from dskprep import storage
from dskprep.counts import n_of
from dskprep.dicom.contents import CT_CLASSES, sop_class_in
from dskprep.dicom.sniff import decompressed_head
from dskprep.errors import InfrastructureError, UsageError
from dskprep.labels.mask import check_names
from dskprep.plain import as_utf8
from dskprep.source.case import digest, key_of
from dskprep.source.inputs import archives, inputs, is_archive
from dskprep.storage.threads import Threads

BATCH, AT_ONCE = 256, 16
"""Files of which the first bytes are read ahead of the labels, and how many of them at once."""
HEAD_BYTES = 4096
"""The SOP class of a DICOM file stands within this many bytes."""
OTHER_SUFFIXES = frozenset(
    ".txt .json .md .html .htm .pdf .png .jpg .jpeg .gif .log .py .yaml .yml .toml .ini .sha256 .md5 .gz "
    ".xlsx .xls .docx .raw .zraw .tsv .stl .xsd .dtd .npz .npy".split()
)
"""Names of files that hold no labels."""
IN_DATASET = re.compile(
    r"(?:^|/)(?:claims|records|runs|thumbnails|volumes/[^/]+\.zarr|"
    r"labels/(?:points|written|set-aside|refused|failed|killed))(?=/|$)"
)
"""Where a path goes into a folder of a dataset. Patients have folders called `labels` too."""
COMPRESSED_SUFFIXES = tuple(f".dcm.{kind}" for kind in ("gz", "bz2", "xz"))
"""Names of DICOM files that are compressed as a whole."""
MASK_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".seg.nrrd")
"""Names of mask volumes, which name their volume."""


@dataclass(frozen=True)
class Asked:
    """What is asked for of label sources: which labels, and under which names they are stored.

    `only` are patterns of the authors' names, none for all. `name_as` is the name under which a label is stored, with
    `{name}`, `{file}` and `{number}` as its author's name, the file's and the label's number. `names` gives the values
    of mask volumes names. `consensus` is the share of the readers of LIDC-IDRI who must agree.
    """

    only: tuple[str, ...] = ()
    name_as: str = "{name}"
    names: dict[int, str] = field(default_factory=dict)
    consensus: float = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.consensus, numbers.Real) or not 0 < self.consensus <= 1:
            raise UsageError(f"expected a consensus above 0 and at most 1, found {self.consensus!r}")
        check_names(self.names)
        try:
            fields = {field for _, field, _, _ in string.Formatter().parse(self.name_as)} - {None}
            is_good = bool(self.stored_name("name", "file", 1).strip()) and fields <= {"name", "file", "number"}
        except (KeyError, ValueError, IndexError, AttributeError, TypeError):
            is_good = False
        if not is_good:
            raise UsageError(f"expected a name with {{name}}, {{file}} or {{number}} in it, found {self.name_as!r}")

    def stored_name(self, name: str, file: str, number: int) -> str:
        """Return the name under which a label is to be stored."""
        return self.name_as.format(name=name, file=file, number=number)

    @property
    def is_by_file(self) -> bool:
        """Whether labels are stored under the names of their files."""
        return any(field == "file" for _, field, _, _ in string.Formatter().parse(self.name_as))

    def as_dict(self) -> dict[str, Any]:
        """Return what differs from the defaults, as plain JSON values."""
        names = {str(value): name for value, name in sorted(self.names.items())}
        found = {"only": list(self.only), "as": self.name_as, "names": names, "consensus": self.consensus}
        usual = {"only": [], "as": "{name}", "names": {}, "consensus": 0.5}
        return {name: value for name, value in found.items() if value != usual[name]}

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits that differ where something else is asked for."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class LabelFile:
    """One file with labels. `key` is made of its path below the folder, `digest` of name, size and tag in its listing.

    `path` is that below the folder, without the suffix of a mask volume. `place` is by what its record knows the file
    again: the URL, or a keyed digest of it. `is_hashed` is as of a `Case`.
    """

    key: str
    url: str
    path: str
    digest: str
    n_bytes: int
    place: str
    is_hashed: bool = False

    @property
    def file(self) -> str:
        """The last part of its path."""
        return self.path.rpartition("/")[2]


def label_files(
    place: str,
    patterns: Sequence[str] = (),
    report: Callable[[str], None] = lambda _: None,
    *,
    names_archives: bool = True,
) -> Iterator[LabelFile]:
    """Yield the files of a folder, with all below it, that may hold labels; or the one file at the place.

    With `patterns` those whose path below the folder, or whose name, matches one of them. CT images are left out where
    their first bytes tell. Datasets of dskprep and archives are passed over. `report` hears of each dataset, of how
    many archives there are, with the name of the first if `names_archives`, and of what is there if no file may hold
    labels.
    Raises UsageError if there is nothing at the place.
    """
    entry = None if storage.is_folder(place) else storage.entry_of(place)
    packed = _Packed(names_archives)
    if entry and is_archive(entry.name):
        packed.add(entry.name)
        report(_nothing_found(place, packed.among()))
        return
    if entry:
        yield _label_file(place.rpartition("/")[0], entry, entry.name)
        return
    if not storage.exists(place):
        raise UsageError(f"{place}: there is no such folder or file; check the path")

    def why_not(path: str, entry: storage.Entry) -> str:
        if not patterns:
            return _why_no_labels(place, path, entry)
        is_one = any(fnmatch.fnmatchcase(text, pattern) for pattern in patterns for text in (path, entry.name))
        if not is_one:
            return f"whose name does not match {' or '.join(patterns)}"
        return "" if _is_told_by_name(entry) else _why_no_slice(place, path, entry)

    found, passed = _below(place, report, packed), Counter[str]()
    with Threads(AT_ONCE, "labels") as pool:  # first bytes are read several at once
        while batch := list(itertools.islice(found, BATCH)):
            for (path, entry), why in zip(batch, pool.map(lambda each: why_not(*each), batch), strict=True):
                passed[why] += 1
                if not why:
                    yield _label_file(place, entry, path)
    if not passed[""]:
        files = " and ".join(f"{n_of(n, 'file')} {what}" for what, n in passed.most_common() if what)
        there = " and ".join(filter(None, [files, packed.among()])) or "no file"
        report(_nothing_found(place, there, is_by_pattern=bool(patterns)))
    elif packed.n:
        report(f"{place}: {packed.beside()}")


@dataclass
class _Packed:
    """The archives among files, which are not looked into: how many, and the first by name if that may be told."""

    is_named: bool
    n: int = 0
    first: str = ""

    def add(self, path: str) -> None:
        self.n += 1
        self.first = min(self.first or path, path) if self.is_named else ""

    def among(self) -> str:
        """Tell of them where no label file is found; "" if there are none."""
        such = f" ({'such as ' * (self.n > 1)}{self.first})" if self.first else ""
        return f"{n_of(self.n, 'archive')}{such}, not looked into; unpack what holds labels" if self.n else ""

    def beside(self) -> str:
        """Tell of them beside label files."""
        such = f", such as {self.first}," if self.first else ""
        return (
            f"{n_of(self.n, 'archive')}{such} {'is' if self.n == 1 else 'are'} not looked into for labels; unpack what "
            "holds some: label files are read as files"
        )


def _nothing_found(place: str, there: str, *, is_by_pattern: bool = False) -> str:
    return (
        f"{place}: expected label files (SEG, RTSTRUCT, XML of LIDC-IDRI, NIfTI, NRRD, MetaImage, CSV, Parquet), "
        f"found {there}; {'correct the pattern, or ' * is_by_pattern}name the folder that holds them"
    )


def _below(place: str, report: Callable[[str], None], packed: _Packed) -> Iterator[tuple[str, storage.Entry]]:
    """Yield the files of a folder with all below it, and their paths, but for archives and those of datasets."""

    @functools.cache
    def is_dataset(path: str) -> bool:
        is_one = _is_dataset(url := storage.join(place, path))
        if is_one:
            report(f"{url}: is a dataset of dskprep, and is passed over")
        return is_one

    for folder in storage.walk(place):
        above = [folder.path[: found.start()] for found in IN_DATASET.finditer(folder.path)]  # it may come later
        itself = [folder.path] if any(entry.name == "dataset.json" for entry in folder.entries) else []
        if any(map(is_dataset, above + itself)):
            continue
        above_it = f"{folder.path}/" if folder.path else ""
        for entry in archives(folder.entries):
            packed.add(above_it + entry.name)
        for entry in inputs(folder.entries):
            yield above_it + entry.name, entry


def _is_dataset(url: str) -> bool:
    """Tell whether dskprep has written a folder: other programs have a dataset.json too."""
    try:
        content = json.loads(storage.read_small(storage.join(url, "dataset.json")))
    except (FileNotFoundError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and "settings" in content and "digest" in content


def _why_no_labels(place: str, path: str, entry: storage.Entry) -> str:
    """Say what a file is that holds no labels, "" of one that may."""
    name = entry.name.lower()
    if _is_told_by_name(entry):
        return ""
    if any(name.endswith(suffix) for suffix in OTHER_SUFFIXES) and not name.endswith(COMPRESSED_SUFFIXES):
        return "of a kind that holds no labels"
    return _why_no_slice(place, path, entry)


def _is_told_by_name(entry: storage.Entry) -> bool:
    return entry.name.lower().endswith((*MASK_SUFFIXES, ".csv", ".parquet", ".xml"))


def _why_no_slice(place: str, path: str, entry: storage.Entry) -> str:
    try:
        head = storage.read_head(storage.join(place, path), min(HEAD_BYTES, entry.size)) if entry.size else b""
    except (storage.ObjectChanged, InfrastructureError):  # a dead link, a right that lacks: reading it says so
        return ""
    is_slice = sop_class_in(decompressed_head(head, HEAD_BYTES) or head) in CT_CLASSES
    return "with CT slices" if is_slice else ""


def _label_file(place: str, entry: storage.Entry, path: str) -> LabelFile:
    suffix = next((s for s in sorted(MASK_SUFFIXES, key=len, reverse=True) if path.lower().endswith(s)), "")
    stem = path.removesuffix(path[-len(suffix) :]) if suffix else path
    url = storage.join(place, path)
    return LabelFile(key_of(path), url, stem, digest([entry]), entry.size, as_utf8(url))

"""Which volumes a label belongs to: by the series and slices that it names, then by its frame of reference.

Never by study, folder or order. The table of all volumes is held once in a process, as arrays: 225,000 volumes take
85 MB, and a label is looked up, not searched for.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dskprep import keys
from dskprep.counts import n_of
from dskprep.dataset import identity, index, store
from dskprep.dataset.lookup import Lookup
from dskprep.dataset.record import Record, RecordName
from dskprep.errors import DamagedDataset, Refusal
from dskprep.labels.values import Links, Segment
from dskprep.volume import Grid

EDGE_MM = 5.0
"""A point may lie so far outside of the image: a nodule at its edge, or a header that rounds."""
NAMED = 3
"""How many of several things a message names."""
OTHER_STACKS = "one-of-several-stacks"
"""The warning of a volume of whose series other slices were not written."""
INTERPOLATED = "gap-interpolated"
"""The warning of a volume in which slices that are missing were interpolated."""


class Linked(NamedTuple):
    """The volumes that a label belongs to, and what it was linked by."""

    volumes: list[Record]
    by: str
    warnings: tuple[str, ...] = ()


class Linker:
    """Finds volumes of the dataset at `target`. See `of`."""

    def __init__(self, target: str, table: Any) -> None:
        self.target = target
        columns = {name: table[name].to_pylist() for name in ("key", "input_digest")}
        self._names = list(zip(columns["key"], columns["input_digest"], strict=True))
        self._affines, self._shapes = table["affine"], [table[f"n_{axis}"] for axis in "zyx"]
        self._by_key = {key: i for i, (key, _) in enumerate(self._names)}
        self._by = {name: Lookup(table, name) for name in ("series_uid_sha256", "frame_of_reference")}
        self._identities = identity.of(target)
        self._hashed_key = self._identities.hashed_key if store.has_hashed_keys(target) else str

    def link(self, links: Links, where: str) -> Linked:
        """Return the volumes of a DICOM object or XML. Raises Refusal `label-unlinked`."""
        by_series = self._records(
            i for uid in links.series for i in self._by["series_uid_sha256"].find(keys.series_digest(uid))
        )
        if by_series:
            chosen = [r for r in by_series if any(self.is_in(r, frame) for frame in links.frames or {""})]
            if not chosen:
                raise Refusal(
                    "label-unlinked",
                    f"{where}: expected the frame of reference of the series that it names, found "
                    f"{self._frames(links.frames)}; it was drawn on another scan, or was moved to it",
                )
            chosen = self._with_slices(chosen, links, where)
            is_told = all(self._is_stack_told(record, links) for record in chosen)
            return Linked(chosen, "series", (*([] if is_told else ["stack-not-told"]), *_gaps_of(chosen)))
        frames = {self._frame(uid) for uid in links.frames} - {None}
        in_frame = self._records(i for frame in frames if frame for i in self._by["frame_of_reference"].find(frame))
        if chosen := [r for r in in_frame if self.holds(r, links.instances)]:
            return Linked(chosen, "instances", _gaps_of(chosen))
        n_images = len({(record.frame_of_reference, record.hu_sha256) for record in in_frame})
        is_one_each = n_images == len({record.frame_of_reference for record in in_frame}) > 0
        is_others = self._are_others(in_frame, links) or any(self._is_of_another(r, links) for r in in_frame)
        if is_one_each and not is_others:
            return Linked(in_frame, "frame-of-reference", ("linked-by-frame-of-reference", *_gaps_of(in_frame)))
        raise Refusal("label-unlinked", self._explain(links, in_frame, where))

    def is_in(self, record: Record, frame_of_reference: str) -> bool:
        """Tell whether a volume may lie in a frame of reference: it does, or one of both does not say."""
        return record.frame_of_reference in (None, self._frame(frame_of_reference) or record.frame_of_reference)

    def belonging(self, record: Record, links: Links, segments: Iterable[Segment]) -> list[Segment]:
        """Return those of the segments of a file, which has these links, that belong to one of its volumes.

        They lie in the frame of reference of the volume, and were drawn on slices of it, if they say on which. What
        they say counts only where the volume holds other slices that the file names, and where there are several
        series or stacks: of one alone they may be copies of slices, of which one each is written.
        """
        if len(links.series) == 1 and not _is_one_of_several(record):
            return [segment for segment in segments if self.is_in(record, segment.frame_of_reference)]
        held = identity.split_instances(record.instances)
        here = {uid for uid in links.instances if self._identities.instance(uid) in held}
        return [
            segment
            for segment in segments
            if self.is_in(record, segment.frame_of_reference)
            and not (here and segment.instances and here.isdisjoint(segment.instances))
        ]

    def lack_of(self, records: Sequence[Record], segment: Segment) -> str:
        """Say what all volumes of a file lack of what a segment names, "" if it names neither frame nor slices."""
        frame = segment.frame_of_reference
        if frame and not any(self.is_in(record, frame) for record in records):
            return f"lies in its frame {self._frame(frame)}"
        return f"has the {n_of(len(segment.instances), 'slice')} that it was drawn on" if segment.instances else ""

    def holds(self, record: Record, instances: Iterable[str]) -> bool:
        """Tell whether a volume holds one of these slices."""
        held = identity.split_instances(record.instances)
        return any(self._identities.instance(uid) in held for uid in instances)

    def _frame(self, uid: str) -> str | None:
        return self._identities.digest("frame of reference", uid)

    def _frames(self, uids: Iterable[str]) -> str:
        return _some(digest for digest in map(self._frame, uids) if digest)

    def link_key(self, path: str, where: str) -> tuple[Record, str]:
        """Return the volume that a path names, `<key>` or `<key>/<label>`, and that label, or "".

        Raises Refusal `label-unlinked`.
        """
        parts = path.split("/")
        tried = ["__".join(parts), parts[-1], "__".join(parts[:-1]), *parts[-2:-1]]
        found: dict[str, str] = {}
        for key, label in zip(tried, ("", "", parts[-1], parts[-1]), strict=False):
            for known in {key, self._hashed_key(key)} & self._by_key.keys():
                found.setdefault(known, label)
        if len(found) > 1 and tried[0] not in found:
            raise Refusal(
                "label-unlinked",
                f"{where}: expected the key of one volume as the name of the file or of its folder, found those of "
                f"{' and '.join(sorted(found))}; give the file another name",
            )
        for key, label in found.items():
            return self._records([self._by_key[key]])[0], label
        raise Refusal(
            "label-unlinked",
            f"{where}: expected the key of a volume as the name of the file or of its folder, found {path!r:.200}, and "
            f"no such volume in the dataset; name it <key>.nii.gz or <key>/<name>.nii.gz",
        )

    def keys_of(self, owners: Sequence[str], column: str) -> list[list[str]]:
        """Return the keys of the volumes that each owner of a point names by `key` or `seriesuid`."""
        if column == "key":
            either = (dict.fromkeys((owner, self._hashed_key(owner))) for owner in owners)
            return [[key for key in pair if key in self._by_key] for pair in either]
        found = self._by["series_uid_sha256"]
        return [[self._names[i][0] for i in found.find(keys.series_digest(owner))] for owner in owners]

    def are_of_several(self, found: Sequence[str]) -> bool:
        """Tell whether the volumes of these keys are of several patients or studies, and are no copies."""
        return len(found) > 1 and _are_of_several(self._records(self._by_key[key] for key in found))

    def is_called(self, record: Record, path: str) -> bool:
        """Tell whether a path names a volume, and not a label in a folder that does (see `link_key`)."""
        names = ("__".join(path.split("/")), path.rpartition("/")[2])
        return any(record.key in (name, self._hashed_key(name)) for name in names)

    def folders_of(self, record: Record, path: str) -> list[str]:
        """Return the folders of a path that name a volume, none if the file does itself (see `link_key`)."""
        folders = path.split("/")[:-1]
        joined = "__".join(folders)
        if self.is_called(record, path):
            return []
        return folders if record.key in (joined, self._hashed_key(joined)) else folders[-1:]

    def are_inside(self, key: str, points_mm: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which points (n, 3) in LPS mm lie in the volume of this key, or within EDGE_MM of it."""
        row = self._by_key[key]
        n_z, n_y, n_x = (int(column[row].as_py()) for column in self._shapes)
        grid = Grid((n_z, n_y, n_x), np.reshape(self._affines[row].as_py(), (4, 4)))
        index = grid.to_index(points_mm)
        beyond = np.maximum(-0.5 - index, index - (np.array(grid.shape) - 0.5)) * grid.spacing
        return np.asarray((beyond <= EDGE_MM).all(axis=1), np.bool_)

    def slices_of(self, record: Record, links: Links) -> dict[str, int]:
        """Return the index of the slice of each SOPInstanceUID that a label names, of those that the volume has."""
        numbers = identity.slice_numbers(record.instances)
        found = {uid: numbers.get(self._identities.instance(uid)) for uid in links.instances}
        return {uid: k for uid, k in found.items() if k is not None}

    def image_of(self, key: str) -> str:
        """Return the input digest of the volume of this key."""
        digest: str = self._names[self._by_key[key]][1]
        return digest

    def _records(self, rows: Iterable[int]) -> list[Record]:
        try:
            names = sorted({RecordName("written", *self._names[i]) for i in rows})
            return [store.read_record(self.target, name) for name in names]
        except (FileNotFoundError, DamagedDataset) as error:
            raise Refusal(
                "label-unlinked", f"the record of its volume cannot be read ({error}); run again, then annotate"
            ) from error

    def _with_slices(self, records: list[Record], links: Links, where: str) -> list[Record]:
        """Return the volumes of a series whose slices a label names, else those that are the whole series.

        A series may hold several stacks, as the phases of 4D CT, of which some were not written; or several patients,
        where one SeriesInstanceUID was written for all.
        """
        held = [r for r in records if self.holds(r, links.instances)]
        whole = [r for r in records if not (links.instances and _is_one_of_several(r))]
        if not held and not whole:
            several = ", ".join(record.key for record in records[:NAMED])
            raise Refusal(
                "label-unlinked",
                f"{where}: expected slices of {several}, which is of the series that it names, found only others "
                f"({len(links.instances)}); it was drawn on slices that were not written, as those of another phase",
            )
        is_of_nobody = bool(links.instances) and not (links.patient or links.study)  # as the XML of LIDC-IDRI
        others = [r for r in whole if self._is_of_another(r, links) or (is_of_nobody and r.instances)]
        chosen = held or [r for r in whole if r not in others]
        if not chosen:
            raise Refusal(
                "label-unlinked",
                f"{where}: expected slices of {records[0].key}, whose series it names, or its patient or study, found "
                "others; it was drawn on another scan of the same SeriesInstanceUID",
            )
        if _are_of_several(chosen):
            several = ", ".join(record.key for record in chosen[:NAMED])
            raise Refusal(
                "label-unlinked",
                f"{where}: expected a series of one patient, or the slices that it was drawn on, found no such slices, "
                f"and the series is of several ({several})",
            )
        return chosen

    def _is_stack_told(self, record: Record, links: Links) -> bool:
        """Tell whether a label says that it was drawn on this stack of a series, if the series has several.

        It does not by listing slices of several stacks, nor by one object that may hold all of them, as Enhanced CT.
        """
        if not _is_one_of_several(record):
            return True
        held = identity.split_instances(record.instances)
        named = {self._identities.instance(uid) for uid in links.instances}
        return len(held) > 1 and bool(named) and (links.are_drawn_on or named <= held)

    def _is_of_another(self, record: Record, links: Links) -> bool:
        """Tell whether a label says that it is of another patient, and of another study too, than a volume."""
        digest = self._identities.digest
        if not (links.patient and links.study and record.patient and record.study):
            return False
        patients = {record.patient, record.patient_without_issuer}
        return digest("study", links.study) != record.study and digest("patient", links.patient, "") not in patients

    def _are_others(self, records: list[Record], links: Links) -> bool:
        """Tell whether the label names slices, and all of these volumes say that they are not theirs."""
        return bool(links.instances) and not links.series and all(r.instances for r in records)

    def _explain(self, links: Links, in_frame: list[Record], where: str) -> str:
        """Say what a label asks for, in the digests that records have of it: no UID is written."""
        asked = [f"the series {_some(map(keys.series_digest, links.series))}"] if links.series else []
        asked += [n_of(len(links.instances), "slice")] if links.instances and not links.series else []
        asked += [f"the frame of reference {self._frames(links.frames)}"] if links.frames else []
        if not (links.series or links.frames):
            found = f"only {asked[0]}" if asked else "neither in it"
            return f"{where}: expected the series or frame of reference that it belongs to, found {found}"
        if in_frame:
            several = ", ".join(record.key for record in in_frame[:NAMED])
            return (
                f"{where}: asks for {' and '.join(asked)}; that frame has {len(in_frame)} volumes ({several}), and it "
                "names none of them"
            )
        return f"{where}: asks for {' and '.join(asked)}, and no volume of the dataset has it"


def _is_one_of_several(record: Record) -> bool:
    """Tell whether a volume is one of several stacks of its series, and its record has the digests of its slices."""
    return record.instances is not None and (OTHER_STACKS in record.warnings or record.stack is not None)


def _gaps_of(records: Sequence[Record]) -> tuple[str, ...]:
    """Return the warning of volumes in which slices were interpolated: there what is drawn on slices is empty."""
    return (INTERPOLATED,) if any(INTERPOLATED in record.warnings for record in records) else ()


def _are_of_several(records: Sequence[Record]) -> bool:
    """Tell whether volumes of one SeriesInstanceUID are of several patients or studies, and are no copies."""
    return len({(r.patient, r.study) for r in records}) > 1 and len({r.hu_sha256 for r in records}) > 1


@functools.lru_cache(maxsize=1)
def of(target: str, run: str) -> Linker:
    """Return what finds the volumes of a dataset; it is made once for a run in each process, from index.parquet."""
    del run  # another run may find other volumes
    return Linker(target, index.written_table(target))


def _some(digests: Iterable[str]) -> str:
    found = sorted(digests)
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return f"{', '.join(found[:NAMED])}{more}"

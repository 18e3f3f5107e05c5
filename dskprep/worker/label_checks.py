"""What speaks against a label that could be drawn: it is mirrored, or its source has the content of another one.

Whether a label of a lung lies on the side that it is called by, the image's own anatomy tells. Points of a source that
is there under another name would count twice.
"""

from __future__ import annotations

import glob
import itertools
import shlex
from typing import Any

import numpy as np

from dskprep.dataset import store
from dskprep.dataset.annotations import known_contents
from dskprep.dataset.label_record import LabelRecord
from dskprep.dataset.record import Record
from dskprep.errors import Refusal
from dskprep.labels.draw import Drawn
from dskprep.reading.stored import StoredVolume
from dskprep.sides import LEFT, RIGHT
from dskprep.source.label_files import LabelFile
from dskprep.worker.label_job import LabelJob
from dskprep.worker.side_words import side_of

SURE_SHARE = 5
"""So many times as many voxels of a label must lie in the other lung, before it is called mirrored."""
LEAST_VOXELS = 1000
"""Fewest voxels of a label in the lungs that tell."""


def check_side(name: str, drawn: Drawn, volume: Record, target: str, where: str) -> None:
    """Raise Refusal `label-mirrored` if a label that is called by one lung lies in the other.

    Nothing is checked where the volume has no lungs, or their sides are not known.
    """
    side, lungs = side_of(name), volume.lungs
    if side is None or lungs is None or min(lungs.right_ml, lungs.left_ml) == 0:
        return
    stored = StoredVolume(volume.key, store.volume_url(target, volume.key), volume)
    z, y, x = drawn.mask.shape
    mask = stored.shards("lungs").read(drawn.first, (z, y, x))
    n_own, n_other = (int(np.count_nonzero(drawn.mask & (mask == s))) for s in (side, RIGHT + LEFT - side))
    if n_own + n_other >= LEAST_VOXELS and n_other > SURE_SHARE * n_own:
        words = {RIGHT: "right", LEFT: "left"}
        raise Refusal(
            "label-mirrored",
            f"{where}: expected {name!r} in the {words[side]} lung, found {n_other} of its voxels in the "
            f"{words[RIGHT + LEFT - side]} one and {n_own} in its own; the file, or its voxels, are mirrored",
        )


def check_new(target: str, job: LabelJob, record: LabelRecord) -> None:
    """Raise Refusal `label-exists` if the content of a source is there already under another name.

    A file that was moved replaces what is there of its old place.
    """
    other = known_contents(target, job.run).get((record.sha256, record.options), record.source)
    if other not in {record.source, *(name.source for name in job.same_elsewhere(record.sha256))}:
        raise Refusal("label-exists", f"{job.case.url}: {_explain(other)}")


def refuse_copy(record: LabelRecord, other: str) -> LabelRecord:
    """Return the record of a table whose content another source has brought in the same run."""
    gone: dict[str, Any] = {"points": None, "n_points": 0, "warnings": ()}
    message = f"{record.source}: {_explain(other)}"
    return record.changed(status="refused", reason="label-exists", message=message, **gone)


def refuse_taken(record: LabelRecord, job: LabelJob, target: str) -> LabelRecord | None:
    """Return the refused record of a source that has none of the names it asks for, because one other source has them.

    That is its own content under other options, maybe at another path, whose points are there already; or another file
    of the same path, as in another folder. None if it is not so. The message has the commands that replace what is
    there. A mask of the same content has none, since its folder may say its volume.
    """
    taken = [label for label in record.labels if label.reason == "label-exists"]
    owners = {label.taken_by for label in taken}
    if record.written or len(owners) != 1:
        return None
    source, _, options = owners.pop().rpartition(".")
    is_same = known_contents(target, record.run or "").get((record.sha256, options)) == source
    if is_same and record.kind != "mask":
        what = "which has the same content"
    elif not is_same and any(name.source == source for _, name in job.elsewhere):
        what = "another file of this name"
    else:
        return None
    above, below = _folder_and_path(job.case)
    labels = [above, "--files", glob.escape(below)] if "/" in below else [job.case.url]
    again = [target, *labels, *_as_options(record.asked), "--retry", "refused"]
    commands = [shlex.join(["dskprep", "annotate", *words]) for words in ([target, "--forget", source], again)]
    message = (
        f"{job.case.url}: {taken[0].name!r} of {taken[0].volume}, and all others that it asks for, are there from "
        f"{source}, {what}; two commands replace them: `{commands[0]}` and `{commands[1]}`; or "
        "--as gives these other names"
    )
    return record.changed(status="refused", reason="label-exists", message=message, n_points=0, warnings=())


def _folder_and_path(case: LabelFile) -> tuple[str, str]:
    """Return the folder that was annotated, and the path of the file below it, with its suffix."""
    at = case.url.rfind(f"/{case.path}")
    return case.url[:at], case.url[at + 1 :]


def _as_options(asked: dict[str, Any]) -> list[str]:
    """Return what was asked for of a source (`Asked.as_dict`) as options of the command line."""
    words = [*itertools.chain(*(("--only", name) for name in asked.get("only", ())))]
    words += ["--as", asked["as"]] if "as" in asked else []
    words += [*itertools.chain(*(("--names", f"{value}={name}") for value, name in asked.get("names", {}).items()))]
    return words + (["--consensus", str(asked["consensus"])] if "consensus" in asked else [])


def _explain(other: str) -> str:
    return f"has the content of {other}, which is in the dataset; --forget {other} deletes that"

"""Label sources that have the content of another one: their points would count twice."""

from __future__ import annotations

from typing import Any

from dskprep.dataset.annotations import known_contents
from dskprep.dataset.label_record import LabelRecord
from dskprep.errors import Refusal


def check_new(target: str, run: str, record: LabelRecord, where: str) -> None:
    """Raise Refusal `label-exists` if the content of a source is there already under another name."""
    other = known_contents(target, run).get((record.sha256, record.options), record.source)
    if other != record.source:
        raise Refusal("label-exists", f"{where}: {_explain(other)}")


def refuse_copy(record: LabelRecord, other: str) -> LabelRecord:
    """Return the record of a table whose content another source has brought in the same run."""
    gone: dict[str, Any] = {"points": None, "n_points": 0, "warnings": ()}
    message = f"{record.source}: {_explain(other)}"
    return record.changed(status="refused", reason="label-exists", message=message, **gone)


def _explain(other: str) -> str:
    return f"has the content of {other}, which is in the dataset; --forget {other} deletes that"

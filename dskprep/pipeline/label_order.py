"""What several label sources of one run bring alike: the first of them by name has it, whichever was done first.

Workers cannot tell, since they do such sources at the same time. So these are looked at last.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from dskprep.dataset import label_store
from dskprep.dataset.label_record import LabelRecord, LabelRecordName
from dskprep.pipeline.label_jobs import Known
from dskprep.source.label_files import Asked, LabelFile
from dskprep.worker.label_checks import refuse_copy
from dskprep.worker.label_job import LabelJob

Do = Callable[[Iterator[LabelJob]], Iterable[LabelRecord]]
"""Does jobs and gives their records."""


def without_copies(records: Iterable[LabelRecord], target: str) -> Iterator[LabelRecord]:
    """Yield the records. Of tables with one content the first by name stays, and the others are `label-exists`."""
    tables: list[LabelRecord] = []
    for record in records:
        if record.kind == "points" and record.is_written:
            tables.append(record)
        else:
            yield record
    first: dict[str, str] = {}
    for record in sorted(tables, key=lambda record: record.source):
        other = first.setdefault(record.sha256, record.source)
        if other != record.source:
            label_store.forget(target, [record.name])
            record = refuse_copy(record, other)
            label_store.commit(target, record)
        yield record


def contests(target: str, run: str, losers: Collection[LabelRecord]) -> list[list[LabelRecord]]:
    """Return the groups of sources of a run of which one has a label's name that another asked for, first by name.

    `losers` are all records of the run with a label whose name was taken (`StoredLabel.taken_by`). A group has all
    sources of the run that asked for the same names, in the order of their names; groups that came out in this order
    are left out.
    """
    pairs = [(record, label.taken_by) for record in losers for label in record.labels if label.taken_by]
    if not pairs:
        return []
    taken = {owner for _, owner in pairs}
    names = [name for name, _ in label_store.list_records(target) if name.status == "written" and _owner(name) in taken]
    winners = {_owner(name): label_store.read_record(target, name) for name in names}
    group_of: dict[LabelRecordName, list[LabelRecord]] = {}
    wrong: set[LabelRecordName] = set()
    for record, owner in pairs:
        winner = winners.get(owner)
        if winner is None or winner.run != run:
            continue
        one, other = (group_of.setdefault(each.name, [each]) for each in (record, winner))
        if one is not other:
            one += other
            group_of.update(dict.fromkeys((each.name for each in other), one))
        if record.source < winner.source:
            wrong.add(record.name)
    groups = {id(group_of[name]): group_of[name] for name in wrong}
    return [sorted(group, key=lambda record: record.source) for group in groups.values()]


def do_again(
    target: str,
    run: str,
    groups: Sequence[Sequence[LabelRecord]],
    files: Iterable[LabelFile],
    asked: Asked,
    known: Known,
    do: Do,
) -> Iterator[LabelRecord]:
    """Delete what the sources of the groups have written, do those of each group one after another, and yield records.

    `files` are those of the run; the ones that are not in a group are passed over. `known` are the records from before.
    """
    wanted = {record.source for group in groups for record in group}
    file_of = {file.key: file for file in files if file.key in wanted}
    owners: dict[str, list[str]] = defaultdict(list)
    for name, _ in label_store.list_records(target):
        owners[name.source].append(_owner(name))
    label_store.forget(target, [record.name for group in groups for record in group])
    for rank in itertools.zip_longest(*groups):
        some = [file_of[record.source] for record in rank if record is not None and record.source in file_of]
        elsewhere = (known.contents(known.of(file, asked.digest)[1]) for file in some)
        yield from do(
            LabelJob(file, asked, run, recorded=tuple(owners[file.key]), elsewhere=others)
            for file, others in zip(some, elsewhere, strict=True)
        )


def _owner(name: LabelRecordName) -> str:
    return f"{name.source}.{name.options}"

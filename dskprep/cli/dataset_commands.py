"""The commands that look after a dataset: status, verify, audit, clean."""

from __future__ import annotations

import click

from dskprep.cli import terminal
from dskprep.cli.exits import EXIT_CLEAN, EXIT_SOME_NOT_WRITTEN
from dskprep.errors import UsageError


@click.command()
@click.argument("target")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(target: str, as_json: bool) -> int:
    """Count the series of TARGET by status, and say why some are not written."""
    from dskprep.cli import words
    from dskprep.cli.output import Output
    from dskprep.dataset.status import status as count

    found = count(target)
    if as_json:
        terminal.say_json(found.as_dict())
    else:
        Output().say(*words.describe_status(found))
    return EXIT_CLEAN if found.is_clean else EXIT_SOME_NOT_WRITTEN


@click.command()
@click.argument("target")
@click.option("--forget", is_flag=True, help="Delete the records of faulty volumes: the next run makes these again.")
@click.option("--dry-run", is_flag=True, help="With --forget: only say what would be deleted.")
def verify(target: str, forget: bool, dry_run: bool) -> int:
    """Re-read every volume of TARGET against its recorded checksums and shape."""
    from dskprep.dataset import label_store, verification

    if dry_run and not forget:
        raise UsageError("--dry-run says what --forget would delete; give both")
    checked, faulty_volumes, faulty = set(), set(), set()
    n_sources = n_others = 0
    faulty_labels = []
    for finding in verification.verify(target):
        checked |= {finding.key} if finding.is_of_volume else set()
        n_sources += finding.labels is not None
        n_others += not finding.is_of_volume and finding.labels is None
        for fault in finding.faults:
            terminal.say(f"{finding.key}: {fault}")
        if finding.faults and finding.labels:
            faulty_labels.append(finding.labels)
        elif finding.faults:
            faulty.add(finding.key)
            faulty_volumes |= {finding.key} if finding.is_of_volume else set()
        if added := finding.additions:
            terminal.say(f"{finding.key}: {added[0]} and {len(added) - 1} more are not dskprep's; they stay")
    others = f"; other damaged records: {n_others}" if n_others else ""
    sources = f"; {n_sources} label sources, {len(faulty_labels)} with faults" if n_sources else ""
    terminal.say(f"{len(checked)} volumes checked, {len(faulty_volumes)} with faults{sources}{others}")
    if not faulty and not faulty_labels:
        return EXIT_CLEAN
    if forget:
        names = verification.forget(target, faulty, is_trial=dry_run)
        names += label_store.forget(target, faulty_labels, is_trial=dry_run)
        for name in names:
            terminal.say(name)
        terminal.say(f"{len(names)} objects {'would be deleted' if dry_run else 'deleted'}")
    is_done = forget and not dry_run
    way = "run" if not faulty_labels else "run and annotate" if faulty else "annotate"
    terminal.say(f"{way} again to make them anew" if is_done else f"--forget lets the next {way} make them anew")
    return EXIT_SOME_NOT_WRITTEN


@click.command()
@click.argument("target")
@click.option("--sentinels", required=True, metavar="FILE", help="One word or name per line that must not be there.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def audit(target: str, sentinels: str, as_json: bool) -> int:
    """Search every byte of TARGET, a dataset or any other folder, for words that must not be there.

    A word is told by its line in FILE, and hidden where it stands in a name. Exit code 1 if one was found, or something
    could not be decoded.
    """
    from dskprep import storage
    from dskprep.dataset import audit as search

    target = storage.absolute(target)
    words = search.read_sentinels(target, sentinels)
    n_objects, unclean = 0, []
    for searched in search.audit(target, words):
        n_objects += not searched.name.endswith("/")
        if searched.is_clean:
            continue
        unclean.append(searched)
        if not as_json:
            told = [f"word {found.word} ({found.how})" for found in searched.found]
            terminal.say(f"{searched.name}: {'; '.join([*told, *([searched.problem] if searched.problem else [])])}")
    n_found, n_problems = sum(bool(s.found) for s in unclean), sum(bool(s.problem) for s in unclean)
    if as_json:
        found = [{"object": s.name} | each._asdict() for s in unclean for each in s.found]
        problems = [{"object": s.name, "problem": s.problem} for s in unclean if s.problem]
        counts = {"objects": n_objects, "words": words.n_words, "is_clean": not unclean}
        terminal.say_json(counts | {"found": found, "not_decoded": problems})
    else:
        told = [f"words in {n_found} objects"] * bool(n_found) + [f"{n_problems} not decoded"] * bool(n_problems)
        terminal.say(f"{n_objects} objects searched for {words.n_words} words: {', '.join(told) or 'none found'}")
    return EXIT_SOME_NOT_WRITTEN if unclean else EXIT_CLEAN


@click.command()
@click.argument("target")
@click.option("--older-than", "hours", default=24.0, type=click.FloatRange(0), help="Leave what is younger; in hours.")
@click.option("--dry-run", is_flag=True, help="Only say what would be deleted.")
@click.option("--without-records", is_flag=True, help="Delete volumes even if TARGET has no record of any volume.")
def clean(target: str, hours: float, dry_run: bool, without_records: bool) -> None:
    """Delete what runs that died have left in TARGET: objects without a record, unfinished files."""
    from dskprep.dataset import leftovers

    n_deleted = 0
    found = leftovers.clean(target, older_than_s=3600 * hours, is_trial=dry_run, without_records=without_records)
    for name in found:
        n_deleted += 1
        terminal.say(name)
    terminal.say(f"{n_deleted} leftovers {'found' if dry_run else 'deleted'}")

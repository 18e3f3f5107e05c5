"""The commands that look after a dataset: status, verify, upgrade, audit, clean."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from dskprep.cli import options, terminal
from dskprep.cli.exits import EXIT_CLEAN, EXIT_SOME_NOT_WRITTEN
from dskprep.counts import n_of
from dskprep.errors import UsageError

if TYPE_CHECKING:
    from dskprep.dataset.verification import Finding


@click.command(short_help="Count the series of a dataset, and say why any are lost.")
@click.argument("target")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(target: str, as_json: bool) -> int:
    """Count the series of TARGET by status, and say why some are not written.

    Exit code 1 if one is not written, or if some may be missing: a run is under way, the last one was broken off, none
    has left an account, or what it found was forgotten.
    """
    terminal.wait_for("loading the program")
    options.check_dataset(target)
    from dskprep.cli import words
    from dskprep.cli.output import Output
    from dskprep.dataset.status import status as count

    terminal.wait_for(f"reading the index of {target}")
    found = count(target)
    if as_json:
        terminal.say_json(found.as_dict())
    else:
        Output().say(*words.describe_status(found))
    return EXIT_CLEAN if found.is_clean else EXIT_SOME_NOT_WRITTEN


@click.command(short_help="Check all objects of a dataset against their checksums.")
@click.argument("target")
@click.option(
    "--forget", is_flag=True, help="Delete faulty volumes, their records and thumbnails: the next run makes them anew."
)
@click.option("--dry-run", is_flag=True, help="With --forget: only say what would be deleted.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(target: str, forget: bool, dry_run: bool, as_json: bool) -> int:
    """Re-read every volume of TARGET against its recorded checksums and shape. The exit code is 1 if one is faulty."""
    terminal.wait_for("loading the program")
    if dry_run and not forget:
        raise UsageError("--dry-run says what --forget would delete; give both")
    options.check_dataset(target)
    from dskprep.dataset import verification

    volumes: set[str] = set()
    findings = []  # only those that say something
    n_sources = n_others = 0
    terminal.wait_for(f"listing the records of {target}")
    for n, finding in enumerate(verification.verify(target), 1):
        terminal.wait_for("reading every object again", f"{n_of(n, 'record')} so far")
        volumes |= {finding.key} if finding.is_of_volume else set()
        n_sources += finding.labels is not None
        n_others += not finding.is_of_volume and finding.labels is None
        if finding.faults or finding.additions or finding.unrecorded:
            findings.append(finding)
            for line in () if as_json else _describe_finding(finding):
                terminal.say(line)
    faulty = [finding for finding in findings if finding.faults]
    faulty_volumes = {finding.key for finding in faulty if finding.is_of_volume}
    faulty_labels = [finding.labels for finding in faulty if finding.labels]
    damaged = [finding for finding in faulty if finding.is_damaged]
    damaged_labels = [finding.labels for finding in damaged if finding.labels]
    names = []
    if forget:
        verification.refuse_if_all_are_gone(target, volumes, findings)
        keys = {finding.key for finding in damaged if not finding.labels}
        names = verification.forget_damaged(target, keys, damaged_labels, is_trial=dry_run)
    counts = {
        "volumes": len(volumes),
        "faulty_volumes": len(faulty_volumes),
        "label_sources": n_sources,
        "faulty_label_sources": len(faulty_labels),
        "other_damaged_records": n_others,
    }
    if as_json:
        parts = ("key", "faults", "additions", "unrecorded")
        found = [{part: getattr(finding, part) for part in parts} for finding in findings]
        terminal.say_json({**counts, "findings": found, "would_delete" if dry_run else "deleted": names})
        return EXIT_SOME_NOT_WRITTEN if faulty else EXIT_CLEAN
    others = f"; other damaged records: {n_others}" if n_others else ""
    of_labels = f"; {n_of(n_sources, 'label source')}, {len(faulty_labels)} with faults" if n_sources else ""
    terminal.say(f"{n_of(len(volumes), 'volume')} checked, {len(faulty_volumes)} with faults{of_labels}{others}")
    if not faulty:
        return EXIT_CLEAN
    for name in names:
        terminal.say(name)
    if forget:
        terminal.say(f"{n_of(len(names), 'object')} {'would be deleted' if dry_run else 'deleted'}")
    if len(faulty) > len(damaged):
        terminal.say("what cannot be read may be whole, and is not deleted: check the disk, and its rights")
    if not damaged or (forget and not names):
        return EXIT_SOME_NOT_WRITTEN
    way = "run" if not damaged_labels else "run and annotate" if len(damaged) > len(damaged_labels) else "annotate"
    lets = "without --dry-run, this" if dry_run else "--forget"
    terminal.say(
        f"{lets} lets the next {way} make them anew" if dry_run or not forget else f"{way} again to make them anew"
    )
    return EXIT_SOME_NOT_WRITTEN


def _describe_finding(finding: Finding) -> Iterator[str]:
    """Yield a line for each fault, one for what others added, and one for labels that no record has."""
    for fault in finding.faults:
        yield f"{finding.key}: {fault}"
    if added := finding.additions:
        more = f" and {n_of(len(added) - 1, 'more object')}" if len(added) > 1 else ""
        yield f"{finding.key}: {added[0]}{more}: not dskprep's; left as it is"
    if left := finding.unrecorded:
        more = f" and {n_of(len(left) - 1, 'more label')}" if len(left) > 1 else ""
        way_on = "if no annotate is under way, annotate again, or let clean delete what it left"
        yield f"{finding.key}: {left[0]}{more}: without a record; {way_on}"


@click.command(short_help="Bring the metadata of a dataset to OME-Zarr 0.6.")
@click.argument("target")
@click.option("--dry-run", is_flag=True, help="Only say what would be upgraded.")
def upgrade(target: str, dry_run: bool) -> int:
    """Bring the metadata of all volumes and labels of TARGET to OME-Zarr 0.6; no voxel is touched.

    It may be stopped, and goes on when it is called again. No run may be under way. From then on, runs need the
    setting ome_zarr = "0.6".
    """
    terminal.wait_for("loading the program")
    options.check_dataset(target)
    from dskprep.dataset.upgrade import upgrade as upgrade_all

    terminal.wait_for(f"listing the records of {target}")
    n_volumes = n_sources = n_faulty = 0
    for n, finding in enumerate(upgrade_all(target, is_trial=dry_run), 1):
        terminal.wait_for("looking at records", f"{n} so far")
        for fault in finding.faults:
            terminal.say(f"{finding.key}: {fault}")
        n_faulty += bool(finding.faults)
        n_volumes += finding.is_of_volume and not finding.faults
        n_sources += finding.labels is not None and not finding.faults
    left = f"; left as they are, with faults: {n_faulty}" if n_faulty else ""
    done = f"{'would be' if dry_run else 'were'} upgraded to OME-Zarr 0.6"
    terminal.say(f"{n_of(n_volumes, 'volume')} and {n_of(n_sources, 'label source')} {done}{left}")
    words = terminal.shell_words([target, "--config", f"{target.rstrip('/')}/dataset.json"])
    way = f"{terminal.program()} run SOURCE {words}"
    terminal.say(f"this cannot be undone; from then on a run takes the settings from there: {way}")
    return EXIT_SOME_NOT_WRITTEN if n_faulty else EXIT_CLEAN


@click.command(short_help="Search every byte of a dataset for names.")
@click.argument("target")
@click.option("--sentinels", required=True, metavar="FILE", help="One word or name per line that must not be there.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def audit(target: str, sentinels: str, as_json: bool) -> int:
    """Search every byte of TARGET, a dataset or any other folder, for words that must not be there.

    A word is told by its line in FILE, and hidden where it stands in a name. Exit code 1 if one was found, or something
    could not be decoded.
    """
    terminal.wait_for("loading the program")
    from dskprep import storage
    from dskprep.dataset import audit as search

    terminal.wait_for(f"listing {target}")
    target = storage.absolute(target)
    words = search.read_sentinels(target, sentinels)
    n_objects, unclean = 0, []
    for searched in search.audit(target, words):
        n_objects += not searched.name.endswith("/")
        terminal.wait_for("searching", f"{n_of(n_objects, 'object')} so far")
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
        told = [f"words in {n_of(n_found, 'object')}"] * bool(n_found)
        told += [f"{n_problems} not decoded"] * bool(n_problems)
        searched_for = f"{n_of(n_objects, 'object')} searched for {n_of(words.n_words, 'word')}"
        terminal.say(f"{searched_for}: {', '.join(told) or 'none found'}")
    return EXIT_SOME_NOT_WRITTEN if unclean else EXIT_CLEAN


@click.command(short_help="Delete what runs that died have left in a dataset.")
@click.argument("target")
@click.option("--older-than", default="24h", help="Leave what is younger; a bare number is one of hours.")
@click.option("--dry-run", is_flag=True, help="Only say what would be deleted.")
@click.option("--without-records", is_flag=True, help="Delete volumes and labels even if TARGET has no record of any.")
def clean(target: str, older_than: str, dry_run: bool, without_records: bool) -> None:
    """Delete what runs that died have left in TARGET: objects without a record, unfinished files."""
    terminal.wait_for("loading the program")
    younger_s = options.read_seconds(older_than, "--older-than", "hours")
    from dskprep.dataset import leftovers

    n_deleted = 0
    terminal.wait_for(f"listing {target}")
    found = leftovers.clean(target, older_than_s=younger_s, is_trial=dry_run, without_records=without_records)
    for name in found:
        n_deleted += 1
        terminal.say(name)
    hours = f"{younger_s / 3600:g} h"
    younger = f"; what is younger than {hours} is left, as a run may be writing it (--older-than)" if younger_s else ""
    terminal.say(f"{n_of(n_deleted, 'leftover')} {'found' if dry_run else 'deleted'}{younger}")

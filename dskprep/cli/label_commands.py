"""The command that gives volumes their labels: annotate."""

from __future__ import annotations

from typing import Any

import click

from dskprep.cli import options, terminal
from dskprep.counts import n_of
from dskprep.errors import UsageError

MOST_DIGITS = 20
"""More than any value of a voxel has."""


@click.command(short_help="Give volumes of a dataset their labels and points.")
@click.argument("target")
@click.argument("labels", required=False)
@click.option("--only", multiple=True, metavar="NAME", help="Take only labels of this name, such as 'GTV*'.")
@click.option("--as", "name_as", default="{name}", help="Store labels under this name, with {name}, {file}, {number}.")
@click.option("--names", multiple=True, metavar="VALUE=NAME", help="Name a value of mask volumes, such as 1=liver.")
@click.option("--consensus", default=0.5, type=float, help="Share of the readers of LIDC-IDRI who must agree.")
@click.option("--files", multiple=True, metavar="PATTERN", help="Take only files whose path or name matches.")
@click.option("--forget", multiple=True, metavar="NAME", help="Delete labels of this name, or all of a source.")
@click.option("--dry-run", is_flag=True, help="With --forget: only say what would be deleted.")
@click.option(
    "--retry",
    type=options.Choice(["unlinked", "refused", "failed", "set-aside", "all"]),
    help="Do label sources with this status again; unlinked: those of which something found no volume.",
)
@options.scheduler_options
@click.option("--time-limit", default="30m", help="How long reading, drawing or writing one label source may take.")
@click.option("--log-json", is_flag=True, help="Write lines of JSON to standard output, and nothing else.")
def annotate(
    target: str,
    labels: str | None,
    names: tuple[str, ...],
    forget: tuple[str, ...],
    dry_run: bool,
    scheduler: str,
    workers: int | None,
    memory_limit: str | None,
    time_limit: str,
    log_json: bool,
    files: tuple[str, ...],
    **choice: Any,
) -> int:
    """Give the volumes of TARGET the labels and points in LABELS.

    LABELS is a folder or bucket, or one file: DICOM SEG and RTSTRUCT, LIDC-IDRI XML, mask volumes
    (<key>.nii.gz or <key>/<name>.nii.gz; NRRD, MetaImage), and CSV or Parquet tables of points. DICOM is linked to
    volumes by the series and slices that it names, masks by their file names, points by the column key or seriesuid.
    The exit code is 1 if LABELS holds no such file.
    """
    with terminal.lines_of_json(log_json):
        terminal.wait_for("loading the program")
        if forget:
            return _forget(target, forget, labels, is_trial=dry_run)
        if labels is None or dry_run:
            raise UsageError("give LABELS, where the labels are; --forget alone needs none, and --dry-run goes with it")
        named, time_limit_s = _read_names(names), options.read_time_limit(time_limit)
        options.check_workers(scheduler, workers, memory_limit)
        options.check_dataset(target)
        options.check_there(labels, otherwise="there is no such folder or file; check the path")
        from dskprep.cli import words
        from dskprep.cli.output import Output
        from dskprep.cli.workers import workers_of
        from dskprep.pipeline import annotate as pipeline

        output = Output(as_json=log_json)
        terminal.wait_for(f"looking at {labels} and {target}")
        task = pipeline.check(target, labels, names=named, patterns=files, **choice)  # only, name_as, consensus, retry
        with workers_of(scheduler, workers, memory_limit) as crew, options.told_how_to_go_on(output.say):
            with output.observe(crew, lines=True) as seen:
                summary = pipeline.execute(
                    task, client=crew.client, starts=seen.starts, time_limit_s=time_limit_s, observers=[seen]
                )
            seen.tell_end(summary.as_dict(), *words.describe_labels(summary))
            if summary.is_interrupted:
                output.say(f"to go on: {options.command_line()}")
    return summary.exit_code or int(not summary.counts)


def _forget(target: str, patterns: tuple[str, ...], labels: str | None, *, is_trial: bool) -> int:
    if labels:
        raise UsageError(f"--forget deletes labels of the dataset; leave out {labels}")
    from dskprep.pipeline import annotate as pipeline

    deleted = pipeline.forget_labels(target, *patterns, is_trial=is_trial)
    for name in deleted:
        terminal.say(name)
    terminal.say(f"{n_of(len(deleted), 'object')} {'would be deleted' if is_trial else 'deleted'}")
    return 0


def _read_names(texts: tuple[str, ...]) -> dict[int, str]:
    """Return the names of values. Raises UsageError for what is no VALUE=NAME."""
    found = {}
    for text in texts:
        value, _, name = text.partition("=")
        if not (value.strip().isdecimal() and len(value) < MOST_DIGITS and name.strip()):
            raise UsageError(f"--names must be a value and a name, such as 1=liver, not {text!r}")
        found[int(value)] = name.strip()
    return found

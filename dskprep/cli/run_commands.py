"""The commands that prepare patients, or say beforehand what that would take: run, plan, phantom, demo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dskprep.cli import options, terminal
from dskprep.cli.exits import EXIT_CLEAN, EXIT_SOME_NOT_WRITTEN
from dskprep.counts import n_of
from dskprep.errors import InfrastructureError, UsageError

if TYPE_CHECKING:
    from dskprep.settings import PrepConfig


@click.command(short_help="Prepare every patient that a dataset does not hold yet.")
@click.argument("source")
@click.argument("target")
@options.preset_option
@options.config_option
@options.scheduler_options
@click.option("--limit", type=click.IntRange(1, 10**9), help="Take only the first N patients.")
@options.only_option
@click.option(
    "--retry",
    type=options.Choice(["refused", "failed", "set-aside", "all"]),
    help="Prepare patients with this status again.",
)
@options.patient_folders_option
@options.licence_option
@click.option("--labels", multiple=True, metavar="PATTERN", help="Label files in SOURCE, such as '*RTSTRUCT*'.")
@click.option(
    "--keys",
    type=options.Choice(["folder", "hashed"]),
    help="What volumes are called: by their folders, or by keyed digests of these [folder, or as TARGET has it].",
)
@click.option("--mapping", metavar="FILE", help="Hash keys; write which is whose to this CSV file outside of TARGET.")
@click.option("--time-limit", default="30m", help="How long reading, computing or writing one patient may take.")
@click.option("--log-json", is_flag=True, help="Write lines of JSON to standard output, and nothing else.")
def run(
    source: str,
    target: str,
    preset: str,
    config: str | None,
    scheduler: str,
    workers: int | None,
    memory_limit: str | None,
    time_limit: str,
    log_json: bool,
    **choice: Any,
) -> int:
    """Prepare every patient of SOURCE that TARGET does not hold yet.

    SOURCE is a folder or bucket whose leaf folders hold DICOM files, or which holds archives, or volumes in one
    file (NIfTI, NRRD, MetaImage); or one such file; or a CSV or Parquet manifest with the columns key and url; or
    series of the Imaging Data Commons: idc:COLLECTION, idc:'SELECT …', or a manifest for s5cmd. SOURCE and TARGET
    are paths or URLs such as s3://bucket/prefix.
    """
    with terminal.lines_of_json(log_json):
        terminal.wait_for("loading the program")
        settings = options.read_settings(preset, config)
        time_limit_s = options.read_time_limit(time_limit)
        options.check_workers(scheduler, workers, memory_limit, settings)
        options.check_there(source)
        from dskprep.cli import words
        from dskprep.cli.output import Output
        from dskprep.cli.workers import workers_of
        from dskprep.look import report
        from dskprep.pipeline import checked
        from dskprep.pipeline import run as pipeline
        from dskprep.pipeline.account import RunStopped

        output = Output(as_json=log_json)
        terminal.wait_for(f"looking at {source} and {target}")
        task = checked.check(source, target, settings=settings, **choice)
        with workers_of(scheduler, workers, memory_limit, settings) as crew, options.told_how_to_go_on(output.say):
            try:
                with output.observe(crew) as observer:
                    summary = pipeline.execute(
                        task,
                        client=crew.client,
                        starts=observer.starts,
                        time_limit_s=time_limit_s,
                        observers=[observer],
                    )
            except RunStopped as stopped:
                raise InfrastructureError(f"{stopped}; to go on: {options.command_line()}") from stopped
            if summary.labels:
                output.tell("labels", summary.labels.as_dict(), *words.describe_labels(summary.labels))
            if summary.is_interrupted:
                output.say(f"to go on: {options.command_line()}")
            elif summary.account.already.total() == summary.account.inputs and not report.is_written(summary.target):
                made = terminal.shell_words([terminal.program(), "report", summary.target])
                output.say(f"report:  the last run left none; {made} makes one")
            if need_bytes := summary.account.largest_need_bytes:
                output.say(f"for those too large: {_way_for_large(settings, need_bytes)}")
    return summary.exit_code


@click.command(short_help="Say what a run would do, and what it would take.")
@click.argument("source")
@options.preset_option
@options.config_option
@click.option("--memory-limit", help="Memory of each worker, such as 1.6GiB [as a local run would have it here].")
@click.option(
    "--sample",
    default=100,
    type=click.IntRange(0),
    help="Read the headers of this many patients, spread evenly; 0: of all.",
)
@options.only_option
@click.option("--against", metavar="TARGET", help="Compare with what became of the same patients in TARGET.")
@options.patient_folders_option
@options.licence_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def plan(
    source: str,
    preset: str,
    config: str | None,
    memory_limit: str | None,
    against: str | None,
    as_json: bool,
    **choice: Any,
) -> int:
    """Say what a run would do with SOURCE: written, refused, memory, size, hours and dollars.

    Only headers are read, but one patient is prepared on this machine, twice, to see how long it takes. Nothing is
    written. Exit code 1 if some patient would be refused.
    """
    terminal.wait_for("loading the program")
    settings = options.read_settings(preset, config)
    options.check_workers("local", None, memory_limit, settings)
    options.check_there(source)
    from dskprep.cli import words
    from dskprep.cli.output import Output
    from dskprep.pipeline import plan as planning

    def on_case(n: int) -> None:
        terminal.wait_for(f"listing {source}", n_of(n, "patient"))

    def on_patient(n_done: int, n_all: int) -> None:
        terminal.wait_for("reading headers", f"{n_done} of {n_all}")
        if n_done == n_all:
            options.wait_for_code("preparing one patient, twice, to see how long it takes")

    def say_note(message: str) -> None:
        terminal.say(f"note: {message}", is_error=True)

    output = Output(as_json=as_json)
    terminal.wait_for(f"listing {source}")
    made = planning.plan(
        source,
        settings=settings,
        memory_limit=memory_limit,
        on_case=on_case,
        on_patient=on_patient,
        on_note=say_note,
        **choice,
    )
    compared = made.compare(against) if against else None
    if as_json:
        terminal.say_json(made.as_dict() | {"compared": compared and compared._asdict()})
    else:
        output.say(*words.describe_plan(made))
        if compared:
            n = compared.n_right + len(compared.differences)
            output.say(f"of {n} series that are done in {against}, {compared.n_right} came out as predicted")
            output.say(*(f"  {difference}" for difference in compared.differences))
    return EXIT_CLEAN if made.is_clean else EXIT_SOME_NOT_WRITTEN


@click.command(short_help="Write synthetic patients as DICOM files.")
@click.argument("target")
@click.option("--patients", default=12, type=click.IntRange(1, 10000), help="How many patients.")
@click.option("--seed", default=0, type=click.IntRange(0), help="Other patients for another seed.")
def phantom(target: str, patients: int, seed: int) -> None:
    """Write synthetic patients to TARGET as real DICOM files, for trying it out."""
    terminal.wait_for("loading the program")
    from dskprep import storage
    from dskprep.dataset import target_place
    from dskprep.synthetic.scanner import write_patient

    url = storage.absolute(target)
    target_place.refuse_inside(url)
    target_place.refuse_file(url, "target")
    if storage.exists(url) and any(folder.entries for folder in storage.walk(url)):
        raise UsageError(
            f"{target}: is not empty; choose another place, or slices of other patients would mix with these"
        )
    names = []
    for index in range(patients):
        terminal.wait_for("making patients", f"{index} of {patients}")
        names.append(write_patient(index, url, seed=seed, broken=0 < index == patients - 1))
    some = names[0] if patients == 1 else f"{names[0]} to {names[-1]}"
    terminal.say(f"{n_of(patients, 'patient')} written to {target}: {some}")


@click.command(short_help="Try it all: synthetic patients, an S3 server, a run.")
@click.option("--patients", default=12, type=click.IntRange(2, 1000), help="How many patients.")
@click.option(
    "-o",
    "--output",
    "folder",
    default="dskprep-demo",
    type=click.Path(file_okay=False),
    help="Where the dataset and a picture are left: an empty or a new folder.",
)
def demo(patients: int, folder: str) -> int:
    """Try the whole thing: synthetic patients in an S3 server on this machine, S3 to S3."""
    terminal.wait_for("loading the program")
    from dskprep.cli import demo as the_demo
    from dskprep.cli.output import Output

    return the_demo.play(patients, Path(folder), Output())


def _way_for_large(settings: PrepConfig, need_bytes: int) -> str:
    """Say how patients that were too large for these workers can be prepared."""
    context = click.get_current_context()
    from dskprep.pipeline import cluster
    from dskprep.worker import admission

    limit = admission.limit_for(need_bytes)
    if context.params["scheduler"] != "local":
        return f"give the workers {limit} each, and run again with --retry refused"
    try:
        workers, _ = cluster.worker_sizes(None, limit, settings)
    except UsageError:
        return f"run again with --retry refused on a machine with {limit} for one worker"
    workers = min(workers, context.params["workers"] or workers)
    return options.command_line(retry="refused", memory_limit=limit, workers=str(workers))

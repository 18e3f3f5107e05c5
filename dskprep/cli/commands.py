"""Words to calls: the command line. Heavy imports happen inside the commands."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from dskprep.cli import printed
from dskprep.errors import DskprepError, InfrastructureError, Refusal, UsageError

if TYPE_CHECKING:
    from distributed import Client

    from dskprep.look.picture import View
    from dskprep.settings import PrepConfig
    from dskprep.source.cases import Case

EXIT_CLEAN, EXIT_SOME_NOT_WRITTEN, EXIT_USAGE, EXIT_INFRASTRUCTURE = 0, 1, 2, 3


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="dskprep")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """From a bucket or folder of chest CT DICOM to a training-ready zarr dataset.

    Exit codes: 0 all written or already there; 1 some patient was refused, failed or killed;
    2 wrong use or configuration; 3 infrastructure (no scheduler, no bucket, no permission).
    """


@main.command()
@click.argument("source")
@click.argument("target")
@click.option("--preset", default="default", show_default=True, help="Settings that come with dskprep.")
@click.option("--config", type=click.Path(dir_okay=False), help="Settings in a TOML file, instead of a preset.")
@click.option(
    "--scheduler", default="local", show_default=True, help="local, sync, a scheduler's address, or its .json file."
)
@click.option("--workers", type=int, help="Worker processes of the local scheduler [one a CPU].")
@click.option("--memory-limit", help="Memory of each local worker, such as 1.6GiB [an equal share].")
@click.option("--limit", type=click.IntRange(1), help="Take the first N patients only.")
@click.option("--only", metavar="PATTERN", help="Take the patients whose key matches, such as 'LIDC-*'.")
@click.option("--retry", type=click.Choice(["refused", "failed", "all"]), help="Do these again.")
@click.option(
    "--patient-folders", is_flag=True, help="Each folder directly in SOURCE is one patient, with all below it."
)
@click.option("--time-limit", default="30m", show_default=True, help="For reading, computing or writing one patient.")
@click.option("--log-json", is_flag=True, help="Lines of JSON on the output, and nothing else.")
@click.pass_context
def run(
    context: click.Context,
    source: str,
    target: str,
    preset: str,
    config: str | None,
    scheduler: str,
    workers: int | None,
    memory_limit: str | None,
    limit: int | None,
    only: str | None,
    retry: str | None,
    patient_folders: bool,
    time_limit: str,
    log_json: bool,
) -> int:
    """Prepare every patient of SOURCE that TARGET does not hold yet.

    SOURCE is a folder or bucket whose leaf folders hold DICOM files, or archives, or a CSV or Parquet
    manifest with the columns key and url. SOURCE and TARGET are paths or URLs such as s3://bucket/prefix.
    """
    from dskprep.pipeline import run as pipeline
    from dskprep.pipeline.account import RunStopped
    from dskprep.preparation import prepare
    from dskprep.settings import PrepConfig

    settings = _settings(preset, config)
    time_limit_s = _seconds(time_limit)
    if scheduler == "local":
        prepare.warm(PrepConfig(recipe=settings.recipe))
    printed.console.quiet = log_json
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a machine that is taken away ends a run like Ctrl-C
    try:
        with (
            opened_client(scheduler, workers, memory_limit) as client,
            printed.shown_progress(client, as_json=log_json) as progress,
        ):
            summary = pipeline.run(
                source,
                target,
                settings=settings,
                client=client,
                limit=limit,
                only=only,
                retry=retry,
                patient_folders=patient_folders,
                time_limit_s=time_limit_s,
                observers=[progress],
            )
    except RunStopped as stopped:
        printed.print_summary(stopped.summary, as_json=log_json)
        raise InfrastructureError(f"{stopped}; to go on: {_command(context)}") from stopped
    printed.print_summary(summary, as_json=log_json)
    if summary.is_interrupted:
        printed.console.print(f"to go on: {_command(context)}")
    if summary.account.largest_need_bytes:
        _print_way_for_large(context, summary.account.largest_need_bytes)
    return summary.exit_code


@main.command()
@click.argument("source")
@click.option("--preset", default="default", show_default=True, help="Settings that come with dskprep.")
@click.option("--config", type=click.Path(dir_okay=False), help="Settings in a TOML file, instead of a preset.")
@click.option("--memory-limit", help="Memory of each worker, such as 1.6GiB [as run would have it here].")
@click.option(
    "--sample",
    default=100,
    show_default=True,
    type=click.IntRange(0),
    help="Read the headers of so many patients, spread evenly; 0: of all.",
)
@click.option("--only", metavar="PATTERN", help="Take the patients whose key matches, such as 'LIDC-*'.")
@click.option("--against", metavar="TARGET", help="Compare with what became of the same patients in TARGET.")
@click.option(
    "--patient-folders", is_flag=True, help="Each folder directly in SOURCE is one patient, with all below it."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def plan(
    source: str,
    preset: str,
    config: str | None,
    memory_limit: str | None,
    sample: int,
    only: str | None,
    against: str | None,
    patient_folders: bool,
    as_json: bool,
) -> int:
    """Say what a run would do with SOURCE, by headers only: written, refused, memory, size, hours and dollars.

    One patient is done on this machine, for the time that it takes; nothing is written. Exit code 1 if some
    patient would be refused.
    """
    import dataclasses

    from rich.progress import track

    from dskprep import storage
    from dskprep.pipeline import cluster
    from dskprep.pipeline import plan as the_plan
    from dskprep.worker import admission

    settings = _settings(preset, config)
    usable_bytes = admission.usable_bytes(cluster.worker_sizes(None, memory_limit)[1])
    cases = the_plan.cases(storage.absolute(source), only, patient_folders=patient_folders)
    sampled = the_plan.sample(cases, sample)
    shown = track(
        sampled, "reading headers", console=printed.console, transient=True, disable=not printed.console.is_terminal
    )
    done = [(case, the_plan.predict(case, settings, usable_bytes)) for case in shown]
    predictions = [p for _, some in done for p in some]
    took = the_plan.calibrate([(case, some[-1]) for case, some in done], settings)
    compared = the_plan.compare(predictions, against) if against else None
    forecast = the_plan.estimate(cases, predictions, len(sampled), took)
    if as_json:
        content = {
            "source": source,
            "patients": len(cases),
            "sampled": len(sampled),
            "predictions": [dataclasses.asdict(p) for p in predictions],
            "calibration": dataclasses.asdict(took) if took else None,
            "estimate": dataclasses.asdict(forecast) if forecast else None,
            "hours": {m.name: forecast.hours_on(m) for m in the_plan.MACHINES} if forecast else {},
            "compared": compared._asdict() if compared else None,
        }
        click.echo(json.dumps(content))
    else:
        for p in predictions:
            if p.status != "written":
                printed.console.print(f"{p.status:8} {p.key} {p.reason}: {p.message}", markup=False)
        what = "all," if len(sampled) == len(cases) else f"{len(sampled)} of them, spread evenly,"
        printed.print_counts(
            f"{len(cases)} patients in {source}; by the headers of {what} these series would be",
            *the_plan.in_numbers(predictions),
        )
        if took and forecast:
            printed.print_forecast(predictions, took, forecast)
        if compared:
            n = compared.n_right + len(compared.differences)
            printed.console.print(f"of {n} series that are done in {against}, {compared.n_right} came out as predicted")
            for difference in compared.differences:
                printed.console.print(f"  {difference}", markup=False)
    return EXIT_CLEAN if all(p.status == "written" for p in predictions) else EXIT_SOME_NOT_WRITTEN


@main.command()
@click.argument("target")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def status(target: str, as_json: bool) -> int:
    """The account of TARGET: how many series of each status, and why."""
    from dskprep import storage
    from dskprep.dataset import index, store

    target = storage.absolute(target)
    store.describe(target)
    table = index.current(target)
    counts = {str(k): int(v) for k, v in table["status"].value_counts().items()}
    split = index.split_series(table)
    lost = table[table["status"] != "written"]
    reasons = {str(k): int(v) for k, v in (lost["status"] + ": " + lost["reason"]).value_counts().items()}
    doubts = table["warnings"].str.split(",").explode()
    warnings = {str(k): int(v) for k, v in doubts[doubts != ""].dropna().value_counts().items()}
    if as_json:
        click.echo(
            json.dumps(
                {
                    "target": target,
                    "series": len(table),
                    "counts": counts,
                    "reasons": reasons,
                    "warnings": warnings,
                    "split_series": split,
                }
            )
        )
    else:
        printed.print_counts(f"{len(table)} series in {target}", counts, reasons, warnings)
        printed.print_split(split)
    return EXIT_CLEAN if set(counts) <= {"written"} and not split else EXIT_SOME_NOT_WRITTEN


@main.command()
@click.argument("target")
@click.option(
    "--forget", is_flag=True, help="Delete the records of faulty volumes, so that the next run makes them again."
)
def verify(target: str, forget: bool) -> int:
    """Re-read every volume of TARGET against its recorded checksums and shape."""
    from dskprep.dataset import verification

    n_checked, faulty = 0, set()
    for finding in verification.verify(target):
        n_checked += 1
        for fault in finding.faults:
            faulty.add(finding.key)
            click.echo(f"{finding.key}: {fault}")
    click.echo(f"{n_checked} volumes checked, {len(faulty)} with faults")
    if faulty and forget:
        verification.forget(target, faulty)
    if faulty:
        click.echo("run again to make them anew" if forget else "--forget lets the next run make them anew")
    return EXIT_SOME_NOT_WRITTEN if faulty else EXIT_CLEAN


@main.command()
@click.argument("target")
@click.option("--older-than", "hours", default=24.0, show_default=True, type=click.FloatRange(0), help="In hours.")
@click.option("--dry-run", is_flag=True, help="Only say what would be deleted.")
def clean(target: str, hours: float, dry_run: bool) -> int:
    """Delete what runs that died have left in TARGET: objects without a record, unfinished files."""
    from dskprep.dataset import verification

    n_deleted = 0
    for name in verification.clean(target, older_than_s=3600 * hours, is_trial=dry_run):
        n_deleted += 1
        click.echo(name)
    click.echo(f"{n_deleted} leftovers {'found' if dry_run else 'deleted'}")
    return EXIT_CLEAN


@main.command()
@click.argument("place")
@click.argument("key", required=False)
@click.option("--source", "with_source", is_flag=True, help="Beside the volume KEY, the series that it was made from.")
@click.option(
    "--3d", "surface", type=click.Choice(["lungs", "bone", "tissue"]), help="A surface instead, lit, from three sides."
)
@click.option("--preset", default="default", show_default=True, help="For PLACE alone: the settings of that run.")
@click.option("--config", type=click.Path(dir_okay=False), help="For PLACE alone: settings in a TOML file instead.")
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="Where to write the picture [KEY.png].")
def show(
    place: str,
    key: str | None,
    with_source: bool,
    surface: str | None,
    preset: str,
    config: str | None,
    output: str | None,
) -> int:
    """Draw a volume: three planes with the outline of the lungs, a histogram and the record in words, as a PNG.

    PLACE and KEY are a dataset and the volume in it. PLACE alone is a folder or archive with the DICOM files of
    one patient: the picture shows them as acquired, and as a run would write them.
    """
    from dskprep.look import picture

    if key and (_is_given("preset") or config):
        raise UsageError("--preset and --config are for PLACE alone; a volume of a dataset has the dataset's settings")
    if with_source and (surface or not key):
        raise UsageError("--source is for the planes of a volume KEY; leave it out")
    if output and ("://" in output or Path(output).suffix not in ("", ".png")):
        raise UsageError(f"{output}: a picture is written to a local file, as PNG; name it so")
    settings = _settings(preset, config)
    with printed.console.status("drawing; the first time code is compiled, which takes half a minute"):
        name, views = _stored_views(place, key, with_source) if key else _source_views(place, settings)
        content = picture.draw_surface(name, views[-1], surface) if surface else picture.draw(name, *views)
    path = Path(output or f"{name}.png")
    path.write_bytes(content)
    click.echo(str(path))
    return EXIT_CLEAN


def _stored_views(target: str, key: str, with_source: bool) -> tuple[str, list[View]]:
    from dskprep import settings as config
    from dskprep.dataset import dataset, index
    from dskprep.look import picture

    opened = dataset.open_dataset(target)
    if key not in opened:
        for row in index.rows(opened.url, ["key", "status", "reason", "message"]):
            if row["key"] == key:
                raise UsageError(f"{key}: was {row['status']}, {row['reason']}: {row['message']}")
        raise UsageError(f"{target}: no volume {key!r} is written; there are {len(opened)}, such as {list(opened)[:3]}")
    stored = opened[key]
    views = [picture.of_stored(stored)]
    if with_source:
        settings = config.from_dict(opened.settings, f"{target}: dataset.json")
        views.insert(0, _acquired(stored.record.url, settings, stored.record.series_uid_sha256))
    return key, views


def _source_views(source: str, settings: PrepConfig) -> tuple[str, list[View]]:
    from dskprep.look import picture
    from dskprep.preparation import prepare, user_steps
    from dskprep.source.found import read_series

    case = _only_case(source)
    user_steps.check(settings)
    prepared = prepare.prepare(read_series(case.url, settings), settings)
    return case.key, [_acquired(case.url, settings), picture.of_prepared(prepared)]


def _only_case(source: str) -> Case:
    """The one patient at a place. Raises UsageError if there are none or several."""
    import itertools

    from dskprep import storage
    from dskprep.source import cases as discover

    url = storage.absolute(source)
    if storage.exists(storage.join(url, "dataset.json")):
        raise UsageError(f"{source}: is a dataset; name the KEY of a volume in it too")
    if not storage.exists(url):
        raise UsageError(f"{source}: there is no such folder; check the path")
    cases = list(itertools.islice(discover.cases(source), 3))
    if len(cases) != 1:
        such = f", such as {', '.join(case.url for case in cases)}" if cases else ""
        raise UsageError(
            f"{source}: expected one folder or archive of DICOM files, found {'several' if cases else 'none'}{such}"
        )
    return cases[0]


def _acquired(url: str, settings: PrepConfig, uid_sha256: str | None = None) -> View:
    """The series as it was acquired, also where a recipe of 2017 would have read it otherwise."""
    from dskprep import settings as config
    from dskprep.look import picture
    from dskprep.source.found import read_series

    names = ("min_slices", "on_gap", "max_gap_slices")
    plain = config.PrepConfig(**{name: getattr(settings, name) for name in names})
    return picture.of_series(read_series(url, plain, uid_sha256=uid_sha256))


@main.command()
@click.argument("a")
@click.argument("b")
@click.option("--series", help="A folder or archive of DICOM; A and B are then presets, or settings in .toml files.")
@click.option("--only", metavar="PATTERN", default="*", help="Compare the patients whose key matches.")
@click.option("--pictures", type=click.Path(file_okay=False), help="Draw each comparison into this folder.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a patient.")
def compare(a: str, b: str, series: str | None, only: str, pictures: str | None, as_json: bool) -> int:
    """What differs between the datasets A and B, patient by patient: place, HU and lungs.

    With --series, between one series under two presets, such as: compare default zuidhof --series FOLDER.
    """
    from dskprep.look import comparison, picture

    if series and _is_given("only"):
        raise UsageError("--only chooses patients of datasets; leave it out with --series")
    if series:
        url = _only_case(series).url
        found = iter(
            [comparison.compare_settings(url, *(_settings(s, s if s.endswith(".toml") else None) for s in (a, b)))]
        )
    else:
        found = comparison.compare_datasets(a, b, only)
    for n, compared in enumerate(found):
        difference = compared.difference
        if as_json:
            click.echo(json.dumps(difference.as_dict()))
        else:
            if n == 0:
                click.echo(comparison.HEADER)
            click.echo(difference.as_line())
        if pictures:
            path = Path(pictures) / f"{Path(difference.key).name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture.draw_comparison(compared, (Path(a).name, Path(b).name)))
    return EXIT_CLEAN


@main.command()
@click.argument("target")
@click.option(
    "-o",
    "--output",
    default="report.html",
    show_default=True,
    type=click.Path(dir_okay=False),
    help="Where to write the page.",
)
def report(target: str, output: str) -> int:
    """Write one page about the whole of TARGET: the account, distributions, all volumes in pictures, outliers first.

    The page needs nothing beside it, and may be sent; it holds pictures of patients.
    """
    from dskprep.look import report as the_report

    Path(output).write_text(the_report.page(target), encoding="utf-8")
    click.echo(output)
    return EXIT_CLEAN


@main.command()
@click.argument("target")
@click.option("--patients", default=12, show_default=True, type=click.IntRange(1, 10000))
@click.option("--seed", default=0, show_default=True, type=int)
def phantom(target: str, patients: int, seed: int) -> int:
    """Write synthetic patients to TARGET as real DICOM files, for trying it out."""
    from dskprep import storage
    from dskprep.synthetic.scanner import write_patients

    url = storage.absolute(target)
    if storage.exists(url) and any(folder.entries for folder in storage.walk(url)):
        raise UsageError(
            f"{target}: is not empty; choose another place, or slices of other patients would mix with these"
        )
    names = write_patients(target, patients, seed=seed)
    click.echo(f"{len(names)} patients written to {target}: {names[0]} to {names[-1]}")
    return EXIT_CLEAN


@main.command()
@click.option("--patients", default=12, show_default=True, type=click.IntRange(2, 1000))
@click.option("-o", "--output", default="dskprep-demo", show_default=True, type=click.Path(file_okay=False))
def demo(patients: int, output: str) -> int:
    """Try the whole thing: synthetic patients in an S3 server on this machine, S3 to S3."""
    from dskprep.cli import demo as the_demo

    the_demo.play(patients, Path(output))
    return EXIT_CLEAN


def run_and_exit(argv: list[str] | None = None) -> None:
    """The program `dskprep`."""
    sys.exit(run_command(argv))


def run_command(argv: list[str] | None = None) -> int:
    """Parse and run; errors become one line and an exit code."""
    argv = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    printed.console.quiet = False
    try:
        code = main.main(argv, standalone_mode=False)
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except click.Abort:
        return _report("interrupted", EXIT_SOME_NOT_WRITTEN)
    except click.ClickException as error:
        error.show()
        return EXIT_USAGE
    except DskprepError as error:
        if "--debug" in argv:
            raise
        code = EXIT_SOME_NOT_WRITTEN if isinstance(error, Refusal) else EXIT_USAGE
        return _report(str(error), EXIT_INFRASTRUCTURE if isinstance(error, InfrastructureError) else code)
    except OSError as error:  # a file of the user's own, such as a picture's place
        if "--debug" in argv:
            raise
        return _report(f"{error.filename or ''}: {error.strerror or error}".lstrip(": "), EXIT_USAGE)
    return code if isinstance(code, int) else EXIT_CLEAN


def _command(context: click.Context, **changed: str | None) -> str:
    """The command line of the context, with some of its options changed."""
    values = context.params | changed
    words = ["dskprep", str(context.info_name)]
    for parameter in context.command.params:
        value = values[str(parameter.name)]
        if isinstance(parameter, click.Argument):
            words.append(str(value))
        elif value is True:
            words.append(parameter.opts[0])
        elif value not in (None, False, parameter.default):
            words += [parameter.opts[0], str(value)]
    return shlex.join(words)


def _print_way_for_large(context: click.Context, need_bytes: int) -> None:
    """How patients that were too large for these workers can be done."""
    from dskprep.pipeline import cluster
    from dskprep.worker import admission

    limit = admission.limit_for(need_bytes)
    if context.params["scheduler"] != "local":
        way = f"give the workers {limit} each, and run again with --retry refused"
    else:
        try:
            workers, _ = cluster.worker_sizes(None, limit)
            way = _command(context, retry="refused", memory_limit=limit, workers=str(workers))
        except UsageError:
            way = f"run again with --retry refused on a machine with {limit} for one worker"
    printed.console.print(f"for those too large: {way}")


def _seconds(text: str) -> float:
    from dask.utils import parse_timedelta

    try:
        seconds = float(parse_timedelta(text))
    except (ValueError, KeyError) as error:
        raise UsageError(f"--time-limit must be a time such as 30m or 90s, not {text!r}") from error
    if seconds <= 0:
        raise UsageError(f"--time-limit must be longer than nothing, not {text!r}")
    return seconds


def _settings(preset: str, path: str | None) -> PrepConfig:
    from dskprep import settings as config

    if path and _is_given("preset"):
        raise UsageError("give --preset or --config, not both")
    return config.read_config(path) if path else config.preset(preset)


def _is_given(option: str) -> bool:
    """Whether an option of this command was typed."""
    return click.get_current_context().get_parameter_source(option) is click.core.ParameterSource.COMMANDLINE


@contextlib.contextmanager
def opened_client(scheduler: str, workers: int | None, memory_limit: str | None) -> Iterator[Client | None]:
    """A client of the chosen cluster; None for this process."""
    if scheduler != "local" and (workers or memory_limit):
        raise UsageError("--workers and --memory-limit go with --scheduler local; other clusters have their own")
    if scheduler == "sync":
        yield None
        return
    from dskprep.pipeline import cluster

    opened = cluster.local_client(workers, memory_limit) if scheduler == "local" else cluster.connect(scheduler)
    printed.quiet_dask()
    with opened as client:
        printed.print_workers(client)
        yield client


def _report(message: str, code: int) -> int:
    if printed.console.quiet:  # --log-json
        from dskprep.cli import terminal

        terminal.write_json("error", {"message": message, "exit_code": code})
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"dskprep: {message}", markup=False)
    return code

"""The commands that make something to look at: show, view, compare, report."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import click

from dskprep.cli import left_files, options, terminal
from dskprep.cli.exits import EXIT_CLEAN, EXIT_SOME_NOT_WRITTEN
from dskprep.errors import UsageError

LEGEND = (
    "index mm: how far voxels of the same index lie apart, at most; overlap: the share of A's image that B covers",
    "mean, 99.9 %, max HU: absolute differences where both images are; at x,y,z mm: where the largest is (LPS)",
    "Dice: overlap of the lungs, 1 if they are the same; ml: how much larger B's lungs are",
    "(… mm) after a patient: spacings of A/B along z, y and x, where they differ",
)
"""What the columns of `compare` mean."""


@click.command(short_help="Draw a volume, or the files of a patient, as a PNG.")
@click.argument("place")
@click.argument("key", required=False)
@click.option("--source", "with_source", is_flag=True, help="Above the volume KEY, the series that it was made from.")
@click.option(
    "--3d", "surface", type=options.Choice(["lungs", "bone", "tissue"]), help="A lit surface instead, from three sides."
)
@click.option("--label", metavar="NAME", help="Planes through the first label of KEY of this name, such as 'GTV*'.")
@click.option("--preset", default="default", help="For PLACE alone: settings that come with dskprep.")
@click.option(
    "--config", type=click.Path(dir_okay=False), help="For PLACE alone: settings from a TOML file, or a dataset.json."
)
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="Where to write the picture [KEY.png].")
def show(
    place: str,
    key: str | None,
    with_source: bool,
    surface: str | None,
    label: str | None,
    preset: str,
    config: str | None,
    output: str | None,
) -> int:
    """Draw a volume as a PNG: three planes in two windows with lungs and labels outlined, a histogram, and the record.

    PLACE and KEY are a dataset and the volume in it. PLACE alone is a folder or archive with the DICOM files of one
    patient, or one such file, or a volume file (NIfTI, NRRD, MetaImage): the picture shows them as acquired, and as a
    run would write them. Of several series it is the largest that can be written. A series that is refused or set
    aside is drawn with the reason across the picture; the exit code is 1 if it is refused. The picture replaces one
    that dskprep has left there before, and no other file.
    """
    terminal.wait_for("loading the program")
    if key and (options.is_given("preset") or config):
        raise UsageError("--preset and --config are for PLACE alone; a volume of a dataset has the dataset's settings")
    if with_source and (surface or not key):
        raise UsageError("--source is for the planes of a volume KEY; leave it out")
    if output and ("://" in output or Path(output).suffix not in ("", ".png")):
        raise UsageError(f"{output}: a picture is written to a local file, as PNG; name it so")
    if output or key:
        left_files.check(Path(output or f"{key}.png"))
    settings = None if key else options.read_settings(preset, config)
    options.check_dataset(place) if key else options.check_there(place)
    from dskprep.look import views

    if key:
        terminal.wait_for("drawing")
    else:
        options.wait_for_code("drawing")
    shown = views.draw(place, key, surface=surface, with_source=with_source, label=label, settings=settings)
    path = Path(output or f"{shown.key}.png")
    left_files.leave(path, shown.png)
    terminal.say(str(path))
    if shown.note:
        terminal.say(f"note: {shown.note}", is_error=True)
    if shown.set_aside:
        terminal.say(f"note: set aside: {shown.set_aside}", is_error=True)
    if shown.refusal:
        terminal.say(f"dskprep: {shown.refusal}", is_error=True)
    return EXIT_SOME_NOT_WRITTEN if shown.refusal else EXIT_CLEAN


@click.command(short_help="Say how two datasets, or two presets, differ.")
@click.argument("a")
@click.argument("b")
@click.option("--series", help="A folder or archive of DICOM; A and B are then presets, or settings in .toml files.")
@click.option("--only", metavar="PATTERN", default="*", help="Compare only the patients whose key matches.")
@click.option("--pictures", type=click.Path(file_okay=False), help="Draw each comparison into this folder.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per patient.")
def compare(a: str, b: str, series: str | None, only: str, pictures: str | None, as_json: bool) -> int:
    """Say how the datasets A and B differ, patient by patient: place, HU and lungs.

    With --series, how one series differs under two presets, such as: compare default zuidhof --series FOLDER.
    What the columns mean stands below the table.
    """
    terminal.wait_for("loading the program")
    if series and options.is_given("only"):
        raise UsageError("--only chooses patients of datasets; leave it out with --series")
    of_series = [options.read_settings(s, s if s.endswith(".toml") else None) for s in (a, b)] if series else []
    options.check_there(series) if series else options.check_dataset(a, b)
    if pictures:
        left_files.check_folder(Path(pictures))
    from dskprep.look import comparison, side_by_side

    found: Iterator[comparison.Compared]
    n_all = 1
    if series:
        options.wait_for_code("comparing")
        with warnings.catch_warnings(record=True, action="always") as told:
            found = iter([comparison.compare_settings(series, *of_series)])
        for note in dict.fromkeys(str(warning.message) for warning in told):  # each of the two reads it
            terminal.say(f"note: {note}", is_error=True)
    else:
        terminal.wait_for("comparing")
        found = comparison.compare(a, b, only)
        n_all = found.n_all
        terminal.wait_for("comparing", f"0 of {n_all}")
    for n, compared in enumerate(found):
        difference = compared.difference
        if as_json:
            terminal.say_json(difference.as_dict())
        else:
            for line in [comparison.HEADER, difference.as_line()][n > 0 :]:
                terminal.say(line)
            for label in difference.labels:
                if label.dice != 1:
                    terminal.say(f"  {label.words}")
        if pictures:
            path = Path(pictures) / f"{Path(difference.key).name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            left_files.leave(path, side_by_side.draw_comparison(compared, (Path(a).name, Path(b).name)))
        terminal.wait_for("comparing", f"{n + 1} of {n_all}")
    if not as_json:
        for line in LEGEND:
            terminal.say(line)
    if not isinstance(found, comparison.Comparison):
        return EXIT_CLEAN
    for key, fate in found.one_sided.items():
        terminal.say(f"note: {key}: {fate}", is_error=True)
    for key, message in found.damaged.items():
        terminal.say(f"dskprep: {key}: {message}", is_error=True)
    return EXIT_SOME_NOT_WRITTEN if found.damaged else EXIT_CLEAN


@click.command(short_help="Write one page about a dataset, with pictures.")
@click.argument("target")
@click.option("-o", "--output", default="report.html", type=click.Path(dir_okay=False), help="Where to write the page.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object, and write no page.")
def report(target: str, output: str, as_json: bool) -> None:
    """Write one page about the whole of TARGET: the account, distributions, all volumes in pictures, outliers first.

    The page needs nothing beside it, and may be sent; it holds pictures of patients. It replaces a page that dskprep
    has left there before, and no other file.
    """
    terminal.wait_for(f"reading {target}")
    if as_json and options.is_given("output"):
        raise UsageError("--json prints the figures in place of the page; leave -o out")
    options.check_dataset(target)
    from dskprep.look import report as page

    if as_json:
        terminal.say_json(page.figures(target))
        return
    left_files.check(Path(output))
    left_files.leave(Path(output), page.report(target).encode(errors="replace"))
    terminal.say(output)


@click.command(short_help="Look at a volume in a browser.")
@click.argument("target")
@click.argument("key")
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="The port on 127.0.0.1 [a free one].")
def view(target: str, key: str, port: int) -> None:
    """Look at the volume KEY of TARGET in a browser, with its lungs and labels laid over, until Ctrl-C.

    The page is served on this machine only, and needs no network. Its address holds a secret: who has it can read
    the volume. It needs niivue, which `make viewer` fetches once.
    """
    import threading

    terminal.wait_for(f"opening {target}")
    options.check_dataset(target)
    from dskprep.look import viewer

    with viewer.view(target, key, port=port) as address:
        terminal.say(address)
        here = address.split("/")[2]
        terminal.say(f"open it in a browser; from another machine, first: ssh -L {here.split(':')[1]}:{here} HOST")
        terminal.say("Ctrl-C ends it")
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()

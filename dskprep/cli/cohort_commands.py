"""The commands for a cohort: duplicates, split, export."""

from __future__ import annotations

import click

from dskprep.cli import options, terminal
from dskprep.counts import n_of
from dskprep.errors import UsageError


@click.command(short_help="Name volumes that are the same, or nearly.")
@click.argument("target")
@click.option("--identical", is_flag=True, help="Look for the same pixels only, and at no picture.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def duplicates(target: str, identical: bool, as_json: bool) -> None:
    """Name the volumes of TARGET that are the same, or the same acquisition in another form.

    The pictures of the volumes are compared, which finds it also where names and UIDs are others. Nothing is changed.
    """
    terminal.wait_for(f"reading the index of {target}")
    options.check_dataset(target)
    from dskprep.reading.dataset import open_dataset

    def report(n_done: int, n_all: int) -> None:
        terminal.wait_for("comparing", f"{n_done} of {n_all}")

    dataset = open_dataset(target)
    found = dataset.duplicates(near=not identical, report=report)
    pairs = found.pairs.to_dict("records")
    if as_json:
        terminal.say_json({"counts": found.counts, "pairs": pairs, "unseen": list(found.unseen)})
        return
    for pair in pairs:
        terminal.say(
            f"{pair['kind']:16} {pair['key']} {pair['other']}  {pair['likeness']:.2f}, {pair['patient']} patient"
        )
    counts = ", ".join(f"{n} {kind}" for kind, n in found.counts.items())
    terminal.say(f"{n_of(len(pairs), 'pair')} among {n_of(len(dataset), 'volume')}{f': {counts}' if counts else ''}")
    if found.unseen:
        terminal.say(f"without a picture, compared by pixels only: {len(found.unseen)}, such as {found.unseen[0]}")


@click.command(short_help="Split a dataset by patient into folds.")
@click.argument("target")
@click.argument("name")
@click.option("--by", multiple=True, metavar="COLUMN", help="Keep equal values of this column together too.")
@click.option("--folds", default=5, type=int, help="Number of folds.")
@click.option("--shares", metavar="A,B[,C]", help="Shares of train and test, or of train, validation and test.")
@click.option("--seed", default=0, type=int, help="Another seed gives another split.")
@click.option("--stratify", multiple=True, metavar="COLUMN", help="Balance the values of this column.")
@click.option("--balanced", is_flag=True, help="Balance the numbers of volumes.")
@click.option("--join", "table", metavar="FILE", help="Take columns from a CSV or Parquet file.")
@click.option("--on", default="key", help="The column of the index that says which row of FILE is a volume's.")
@click.option("--column", help="The column of FILE, if it has another name there.")
@click.option("--extend", metavar="SPLIT", help="Leave all volumes where they are in this split; add the new ones.")
def split(
    target: str,
    name: str,
    by: tuple[str, ...],
    folds: int,
    shares: str | None,
    seed: int,
    stratify: tuple[str, ...],
    balanced: bool,
    table: str | None,
    on: str,
    column: str | None,
    extend: str | None,
) -> None:
    """Split TARGET by patient into folds, and write that as NAME.

    NAME is a word, for TARGET/splits/NAME.json, or the path of a file. Without --stratify or --balanced nobody moves
    when patients are added and the split is made again, but shares are not exact.
    """
    terminal.wait_for(f"reading the index of {target}")
    if (
        given := [o for o in ("by", "folds", "shares", "seed", "stratify", "balanced") if options.is_given(o)]
    ) and extend:
        raise UsageError(f"--extend makes a split as the other one was made; leave out --{given[0]}")
    asked_shares = _read_shares(shares)
    options.check_dataset(target)
    from dskprep.reading.dataset import open_dataset

    dataset = open_dataset(target)
    if table:
        dataset = dataset.join(table, on, column=column)
    elif options.is_given("on") or column:
        raise UsageError("--on and --column say how a table is joined; give --join, too")
    made = (
        dataset.extend_split(extend)
        if extend
        else dataset.split(
            by or "patient",
            folds=folds,
            seed=seed,
            stratify=stratify or (() if balanced else None),
            shares=asked_shares,
        )
    )
    url = made.save(name)
    terminal.say(made.describe())
    terminal.say(url)


def _read_shares(text: str | None) -> tuple[float, ...] | None:
    try:
        return None if text is None else tuple(map(float, text.split(",")))
    except ValueError as error:
        raise UsageError(f"--shares must be numbers such as 0.8,0.1,0.1, not {text!r}") from error


@click.command(short_help="Write a dataset for nnU-Net, MONAI or as Croissant.")
@click.argument("kind", type=options.Choice(["nnunet", "monai", "croissant"]))
@click.argument("target")
@click.argument("out")
@click.option(
    "--labels", multiple=True, default=("lungs",), metavar="NAME", help="A class of the masks, such as 'GTV*'."
)
@click.option("--split", "split_", metavar="SPLIT", help="The name or file of a split.")
@click.option("--licence", "--license", "licence", default="", help="The licence of the data, as a URL or name.")
@options.scheduler_options
@click.option("--log-json", is_flag=True, help="Write lines of JSON to standard output, and nothing else.")
def export(
    kind: str,
    target: str,
    out: str,
    labels: tuple[str, ...],
    split_: str | None,
    licence: str,
    scheduler: str,
    workers: int | None,
    memory_limit: str | None,
    log_json: bool,
) -> int:
    """Write TARGET in the form that another program takes, to OUT; TARGET is only read.

    nnunet: the raw data of nnU-Net v2, which finds OUT by its name if that is as Dataset001_NAME. monai: NIfTI files
    and a datalist. croissant: a description for catalogues, without voxels. Each --labels is a class of the masks, in
    this order from 1 on.
    """
    with terminal.lines_of_json(log_json):
        terminal.wait_for("loading the program")
        options.check_workers(scheduler, workers, memory_limit)
        options.check_dataset(target)
        from dskprep.cli import words
        from dskprep.cli.output import Output
        from dskprep.cli.workers import workers_of
        from dskprep.pipeline import export as pipeline

        output = Output(as_json=log_json)
        terminal.wait_for(f"reading the index of {target}")
        task = pipeline.begin(kind, target, out, labels=labels, split=split_, licence=licence)
        with workers_of(scheduler, workers, memory_limit) as crew, options.told_how_to_go_on(output.say):
            with output.observe(crew, lines=True) as seen:
                summary = pipeline.execute(task, client=crew.client, starts=seen.starts, observers=[seen])
            seen.tell_end(summary.as_dict(), *words.describe_export(summary))
            if summary.is_interrupted:
                output.say(f"to go on: {options.command_line()}")
    return summary.exit_code

"""What the options of several commands say, and what is made of them."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dskprep.cli import exits, terminal
from dskprep.errors import UsageError

if TYPE_CHECKING:
    from dskprep.settings import PrepConfig


class Choice(click.Choice):  # type: ignore[type-arg]
    """One of some words; an error of another one names the nearest, as that of an unknown command does."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            near = difflib.get_close_matches(str(value).lower(), self.choices, n=1)
            if not near:
                raise
            raise click.BadParameter(f"{error.message} Did you mean {near[0]!r}?", ctx, param) from error


preset_option = click.option("--preset", default="default", help="Settings that come with dskprep, by their name.")
config_option = click.option(
    "--config", type=click.Path(dir_okay=False), help="Settings from a TOML file, or a dataset.json."
)
only_option = click.option(
    "--only", metavar="PATTERN", help="Take only the patients whose key matches, such as 'LIDC-*'."
)
patient_folders_option = click.option(
    "--patient-folders", is_flag=True, help="Each folder directly in SOURCE is one patient, with all below it."
)

licence_option = click.option(
    "--licence",
    "--license",
    "licence",
    type=Choice(["commercial"]),
    help="Refuse series of the Imaging Data Commons whose licence does not allow this use.",
)


def scheduler_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that say where its work is done."""
    for option in (
        click.option("--memory-limit", help="Memory of each local worker, such as 1.6GiB [an equal share]."),
        click.option("--workers", type=int, help="Worker processes of the local scheduler [one per CPU]."),
        click.option(
            "--scheduler",
            default="local",
            help="local, sync (this process), the address of a Dask scheduler, or its .json file.",
        ),
    ):
        command = option(command)
    return command


def read_settings(preset: str, path: str | None) -> PrepConfig:
    """Return the settings that --preset and --config choose. Raises UsageError if both are given."""
    from dskprep import settings

    if path and is_given("preset"):
        raise UsageError("give --preset or --config, not both")
    place, _, name = (path or "").rpartition("/")
    if name == "dataset.json":  # goes on with a dataset, or makes another one like it
        from dskprep import storage
        from dskprep.dataset import store

        return store.settings_of(storage.absolute(place or "."))
    return settings.read_config(path) if path else settings.preset(preset)


def read_time_limit(text: str) -> float:
    """Return a time such as 30m in seconds. Raises UsageError if it is none, or nothing."""
    if not (seconds := read_seconds(text, "--time-limit", "seconds")):
        raise UsageError(f"--time-limit must be longer than nothing, not {text!r}")
    return seconds


def read_seconds(text: str, option: str, unit: str) -> float:
    """Return a time such as 30m in seconds; `unit` is that of a bare number. Raises UsageError if it is none."""
    from dask.utils import parse_timedelta

    try:
        return float(parse_timedelta(text, default=unit))
    except (ValueError, KeyError, IndexError, OverflowError) as error:
        raise UsageError(f"{option} must be a time such as 30m or 90s, not {text!r}") from error


def is_given(option: str) -> bool:
    """Return whether the user typed this option of the command."""
    return click.get_current_context().get_parameter_source(option) is click.core.ParameterSource.COMMANDLINE


def check_workers(
    scheduler: str, workers: int | None, memory_limit: str | None, settings: PrepConfig | None = None
) -> None:
    """Raise UsageError for workers that cannot be: by the words alone before Dask is loaded, then on this machine."""
    if scheduler != "local" and not (workers is None and memory_limit is None):
        raise UsageError("--workers and --memory-limit go with --scheduler local; other clusters have their own")
    if scheduler not in ("local", "sync"):
        from dskprep.pipeline.workers import check_address

        check_address(scheduler)
    if workers is not None or memory_limit is not None:
        from dskprep.pipeline.workers import check_sizes

        check_sizes(workers, memory_limit)
        from dskprep.pipeline import cluster

        cluster.worker_sizes(workers, memory_limit, settings)


def check_there(*places: str, otherwise: str = "there is no such folder; check the path") -> None:
    """Raise UsageError for a place on this machine that is not there, before anything is loaded to look into it.

    What else can be wrong with it, and with URLs, shows later.
    """
    for place in places:
        if place and ":" not in place:
            try:
                Path(place).expanduser().stat()
            except FileNotFoundError as error:
                raise UsageError(f"{place}: {otherwise}") from error
            except (OSError, RuntimeError, ValueError):  # no permission, no such user, a NUL
                continue


def check_dataset(*targets: str) -> None:
    """Raise UsageError for a dataset on this machine that is not there, before anything is loaded to look into it."""
    check_there(
        *targets, otherwise="there is no dskprep dataset here (there is no such folder); name the target of a run"
    )


def wait_for_code(doing: str) -> None:
    """Say what is waited for; and that code is compiled first, if it will be."""
    from dskprep.preparation import prepare

    terminal.wait_for(doing if prepare.is_warm() else f"{doing}; the code is compiled first, once")


@contextlib.contextmanager
def told_how_to_go_on(say: Callable[[str], None]) -> Iterator[None]:
    """Say how to go on if Ctrl-C ends the block, without an account."""
    try:
        yield
    except exits.Unread:
        raise
    except KeyboardInterrupt:
        say(f"to go on: {command_line()}")
        raise


def command_line(**changed: str | None) -> str:
    """Return the command line of the command that runs, with some of its options changed."""
    context = click.get_current_context()
    values = context.params | changed
    words = [terminal.program(), str(context.info_name)]
    for parameter in context.command.params:
        value = values[str(parameter.name)]
        if value is None or value is False or value == parameter.default:
            continue
        if isinstance(parameter, click.Argument):
            words.append(str(value))
        elif value is True:
            words.append(parameter.opts[0])
        elif isinstance(value, tuple):
            words += [word for each in value for word in (parameter.opts[0], str(each))]
        else:
            words += [parameter.opts[0], str(value)]
    return terminal.shell_words(words)

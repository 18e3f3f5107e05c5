"""The program `dskprep`: its commands, and how it ends. Heavy imports happen inside the commands."""

from __future__ import annotations

import io
import sys
from typing import Any

import click
from click.core import ParameterSource

from dskprep import plain
from dskprep.cli import cohort_commands, dataset_commands, exits, label_commands, look_commands, run_commands, terminal
from dskprep.cli.exits import EXIT_CLEAN, EXIT_SOME_NOT_WRITTEN, EXIT_USAGE, describe_error, misconfigured
from dskprep.errors import DskprepError


class Commands(click.Group):
    """The commands, whose output somebody may cease to read."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except exits.Unread as unread:  # click would take it for Ctrl-C
            raise click.exceptions.Exit(EXIT_SOME_NOT_WRITTEN) from unread


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="dskprep")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """From a bucket or folder of chest CT DICOM to a training-ready zarr dataset.

    Exit codes: 0 all patients are written or set aside; 1 some patient is refused, failed or killed, now or since an
    earlier run, or you interrupted it; 2 wrong use or configuration; 3 infrastructure (no scheduler, no bucket, no
    permission).
    """


def _refuse_nothing(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Refuse an empty text, as an unset variable of a shell leaves it: it may mean less than what was asked for."""
    is_given = parameter.name and ctx.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    if is_given and "" in (value if isinstance(value, tuple) else (value,)):
        raise click.BadParameter("expected a value, found nothing; is a variable of the shell not set?")
    return value


for command in (
    run_commands.run,
    run_commands.plan,
    label_commands.annotate,
    dataset_commands.status,
    dataset_commands.verify,
    dataset_commands.upgrade,
    dataset_commands.audit,
    dataset_commands.clean,
    cohort_commands.duplicates,
    cohort_commands.split,
    cohort_commands.export,
    look_commands.show,
    look_commands.view,
    look_commands.compare,
    look_commands.report,
    run_commands.phantom,
    run_commands.demo,
):
    main.add_command(command)
    for parameter in command.params:
        parameter.callback = _refuse_nothing


def run_and_exit() -> None:
    """Run the program `dskprep`."""
    plain.escape_what_python_prints(before_warnings=terminal.end_wait)
    exits.end_as_on_ctrl_c()
    code = EXIT_SOME_NOT_WRITTEN
    try:
        code = run_command()
        exits.end_soon()
    except KeyboardInterrupt:  # when all was said
        exits.end_soon()
    sys.exit(code)


def run_command(argv: list[str] | None = None) -> int:
    """Parse the words, run the command, and return its exit code; an error becomes one line."""
    argv = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    try:
        try:
            code = main.main(argv, standalone_mode=False)
        finally:
            terminal.end_command()
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except click.ClickException as error:
        if not isinstance(error, click.exceptions.NoArgsIsHelpError):  # which is the help
            error.message = plain.escape(error.message)  # type: ignore[misc]  # it repeats names of files
        error.show()
        return EXIT_USAGE
    except BrokenPipeError:  # `| head` has read enough
        exits.silence()
        return EXIT_SOME_NOT_WRITTEN
    except (click.Abort, DskprepError, OSError, MemoryError) as error:
        if "--debug" in argv and not isinstance(error, click.Abort):
            raise
        message, code = describe_error(error)
        terminal.say(f"dskprep: {message}", is_error=True)
        return code
    except Exception as error:  # a bug, but for one kind
        message = misconfigured(error)
        if not message or "--debug" in argv:
            raise
        terminal.say(f"dskprep: {message}", is_error=True)
        return EXIT_USAGE
    return code if isinstance(code, int) else EXIT_CLEAN

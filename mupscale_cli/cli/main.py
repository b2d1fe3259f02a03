"""The command line: its commands, and one boundary that turns errors into messages and exit codes."""

from __future__ import annotations

import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mupscale_cli._version import __version__
from mupscale_cli.cli import (
    demo,
    doctor,
    hparams,
    inspect,
    manual,
    options,
    output,
    plot,
    push,
    recipes,
    run,
    sweep,
    verify,
    widen,
)
from mupscale_cli.errors import Interrupted, MupscaleError

BUG = 70  # of sysexits.h; Python's own 1 would say that the models differ
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # which typer does not name


class _Group(TyperGroup):
    """The root of the commands; a command line that cannot be understood is an error document as well."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except _UsageError as error:  # typer shows it, and ends with 2
            _tell_scripts(MupscaleError(_message(error)), "UsageError")
            raise


app = typer.Typer(cls=_Group, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="markdown")
app.command()(widen.widen)
app.command()(verify.verify)
app.command()(inspect.inspect)
app.command()(hparams.hparams)
app.command()(sweep.sweep)
app.command()(push.push)
app.command()(run.run)
app.add_typer(recipes.app, name="recipes")
app.add_typer(plot.app, name="plot")
app.command()(demo.demo)
app.command()(doctor.doctor)
app.command("help")(manual.show_page)
app.command("schema")(manual.show_schema)


def _share_options(commands: typer.Typer) -> None:
    """Give every command what every command has, in one place."""
    for command in commands.registered_commands:
        assert command.callback is not None
        command.callback = options.with_shared(command.callback)
    for group in commands.registered_groups:
        assert group.typer_instance is not None
        _share_options(group.typer_instance)


_share_options(app)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Widen a trained network without retraining it: the wide model computes the same function.

    New here? `mupscale demo` trains a small model, widens it and verifies it, in under a minute.
    `mupscale help` lists the pages of the manual.
    """
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; what the user can fix ends in one message and exit code 2."""
    signal.signal(signal.SIGTERM, _terminate)
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy")  # torch says so; nothing here needs it
    try:
        app(prog_name="mupscale")
    except Interrupted as error:
        output.stderr().print(str(error), markup=False, soft_wrap=True)
        _tell_scripts(error)
        sys.exit(error.exit_code)
    except MupscaleError as error:
        _fail(error)
    except OSError as error:  # no room, no permission: what no place has foreseen
        what = f"`{error.filename}`: " if error.filename is not None else ""
        _fail(MupscaleError(f"{what}{error.strerror or error}"), cause=error)
    except MemoryError as error:
        _fail(MupscaleError("not enough memory"), cause=error)
    except Exception as error:  # noqa: BLE001 (this is the boundary)
        failure = MupscaleError(
            f"unexpected {type(error).__name__}: {error}",
            hint="this is a mistake in mupscale; `--debug` shows where it happened, for a report",
        )
        _fail(failure, cause=error, code=BUG)


def _fail(error: MupscaleError, *, cause: BaseException | None = None, code: int | None = None) -> None:
    """Show an error, to people and to scripts, and end."""
    output.print_error(error)
    if _is_given("--debug"):
        traceback.print_exception(cause or error, file=sys.stderr)
    code = error.exit_code if code is None else code
    _tell_scripts(error, type(cause or error).__name__, code)
    sys.exit(code)


def _tell_scripts(error: MupscaleError, kind: str = "Interrupted", code: int | None = None) -> None:
    """Under `--json` an error is a document, too."""
    if _is_given("--json"):
        output.print_document(
            "error",
            {
                "exit_code": error.exit_code if code is None else code,
                "error": kind,
                "message": error.message,
                "excerpt": error.excerpt,
                "hint": error.hint,
            },
        )


def _is_given(flag: str, words: Sequence[str] | None = None) -> bool:
    """Whether a flag is on the command line, also on one that could not be parsed."""
    words = sys.argv[1:] if words is None else words
    return flag in (words[: words.index("--")] if "--" in words else words)


def _message(error: Exception) -> str:
    """What typer says of a usage error."""
    formatted = getattr(error, "format_message", None)
    return str(formatted() if formatted is not None else error).rstrip(".")


def _terminate(*_: object) -> None:
    """End as after Ctrl-C, so that what was begun is removed."""
    sys.exit(143)

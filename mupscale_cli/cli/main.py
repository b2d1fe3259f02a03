"""The command line's one boundary, which turns errors into messages and exit codes."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
import traceback
import warnings

import typer

from mupscale_cli.cli.failures import is_given, tell_scripts
from mupscale_cli.cli.overview import overview
from mupscale_cli.errors import Interrupted, MupscaleError, Terminated, without_secrets

BUG = 70  # of sysexits.h; Python's own 1 would say that the models differ


def main() -> None:
    """Run the command line; what the user can fix ends in one message and exit code 2."""
    signal.signal(signal.SIGTERM, _terminate)
    _collect_less()
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy")  # torch says so; nothing here needs it
    try:
        _application()(prog_name="mupscale")
    except Interrupted as error:
        from mupscale_cli.cli import output

        output.stderr().print(str(error), markup=False, soft_wrap=True)
        tell_scripts(error, type(error).__name__)
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


def _application() -> typer.Typer:
    """All commands, or for a look at their list no more than that: importing them takes longer than showing it."""
    is_look = sys.argv[1:] in ([], ["--help"], ["--version"]) and "_MUPSCALE_COMPLETE" not in os.environ
    if is_look:
        return overview()
    from mupscale_cli.cli.commands import app

    return app


def _fail(error: MupscaleError, *, cause: BaseException | None = None, code: int | None = None) -> None:
    """Show an error, to people and to scripts, and end."""
    from mupscale_cli.cli import output

    output.print_error(error)
    if is_given("--debug"):
        # A cause may quote what the message left out, for instance an address with a token in it.
        sys.stderr.write(without_secrets("".join(traceback.format_exception(cause or error))))
    code = error.exit_code if code is None else code
    tell_scripts(error, type(cause or error).__name__, code)
    sys.exit(code)


def _collect_less() -> None:
    """Spare Python from looking through the half million objects of torch time and again, and once more as it ends.

    A process that imports torch and ends takes a quarter less time.
    """
    gc.set_threshold(50_000, 2, 2)  # full collections, which alone find what has lived for long, stay as frequent
    atexit.register(gc.freeze)


def _terminate(*_: object) -> None:
    """End as after Ctrl-C, so that what was begun is removed."""
    sys.exit(Terminated.exit_code)

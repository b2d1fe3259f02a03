"""Entry point of the command line; turns errors into messages and exit codes."""

from __future__ import annotations

import atexit
import gc
import io
import os
import signal
import sys
import traceback
import warnings
from contextlib import suppress
from typing import Any, BinaryIO, NoReturn, cast

import typer

from mupscale_cli.cli import consoles
from mupscale_cli.cli.failures import NotParsed, is_given, print_error_document, usage_error, value_of
from mupscale_cli.cli.overview import overview
from mupscale_cli.errors import Interrupted, MupscaleError, Terminated, without_secrets

_NO_THREAD = "can't start new thread"  # Python's message
_STDOUT = "standard output"
BUG = 70  # EX_SOFTWARE of sysexits.h; Python's own 1 means that the models differ


def main() -> None:
    """Run the command line. Errors that the user can fix print one message and exit with 2."""
    _require_streams()
    _name_stdout()
    signal.signal(signal.SIGTERM, _terminate)
    _collect_less()
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy")  # from torch; mupscale uses no NumPy
    color = value_of("--color")  # help and errors in the command line are printed before an option is parsed
    consoles.manner.set(consoles.Manner(color=color if color in consoles.COLORS else "auto"))
    try:
        code = _application()(prog_name="mupscale", standalone_mode=False, color=consoles.forced_color())
        sys.stdout.flush()  # while an error can still be reported
        sys.exit(code if isinstance(code, int) else 0)
    except NotParsed as error:
        _fail(usage_error(error))
    except typer.Abort as error:  # Ctrl-C before a command begins
        raise KeyboardInterrupt from error
    except Interrupted as error:
        from mupscale_cli.cli import output

        output.stderr().print(error.text, markup=False, soft_wrap=True)
        print_error_document(error, type(error).__name__)
        sys.exit(error.exit_code)
    except MupscaleError as error:
        _fail(error)
    except OSError as error:  # full disk, missing permission: not caught closer to its cause
        if error.filename == _STDOUT:
            from mupscale_cli.cli import output

            output.discard_stdout()
            if isinstance(error, BrokenPipeError):
                sys.exit(output.BROKEN_PIPE)
        place = f"`{error.filename}`: " if error.filename is not None else ""
        _fail(MupscaleError(f"{place}{error.strerror or error}"), cause=error)
    except RuntimeError as error:
        if str(error) != _NO_THREAD:
            _fail_as_bug(error)
        _fail(
            MupscaleError(
                "the system starts no more threads or processes",
                hint="raise the limit (`ulimit -u`, or the container's number of tasks), or end other processes",
            ),
            cause=error,
        )
    except MemoryError as error:
        _fail(MupscaleError("not enough memory"), cause=error)
    except Exception as error:  # noqa: BLE001 (this is the boundary)
        _fail_as_bug(error)


def _require_streams() -> None:
    """Refuse to run without a stream for results and one for messages.

    Files that are opened while a standard descriptor is closed get its number, and whatever a library prints would be
    written into them. So the closed ones are opened first.
    """
    closed = []
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            closed.append(number)
            os.open(os.devnull, os.O_RDWR)  # the lowest free number
    streams = ((1, "standard output", sys.__stdout__), (2, "standard error", sys.__stderr__))
    lacking = [name for number, name, stream in streams if number in closed or stream is None]
    if lacking:
        with suppress(OSError):
            hint = "redirect what you do not need: `>/dev/null`, `2>/dev/null`"
            os.write(1 if 2 in closed else 2, f"error: {' and '.join(lacking)} closed\n\nhint: {hint}\n".encode())
        sys.exit(MupscaleError.exit_code)


class _Stdout(io.FileIO):
    """Standard output, named in the errors of writing to it."""

    def write(self, data: Any, /) -> int:
        """Write bytes; return how many were written."""
        try:
            return super().write(data)
        except OSError as error:
            error.filename = _STDOUT
            raise


def _name_stdout() -> None:
    """Replace standard output by one whose errors say that it was standard output."""
    stream = sys.stdout
    buffer = getattr(stream, "buffer", None)
    if not isinstance(stream, io.TextIOWrapper) or type(getattr(buffer, "raw", buffer)) is not io.FileIO:
        return  # a console of Windows, or a test's
    stream.flush()
    raw = _Stdout(stream.fileno(), "w", closefd=False)
    sys.stdout = io.TextIOWrapper(
        cast("BinaryIO", raw) if stream.write_through else io.BufferedWriter(raw),
        stream.encoding,
        stream.errors,
        line_buffering=bool(stream.line_buffering),
        write_through=stream.write_through,
    )


def _application() -> typer.Typer:
    """Return the given command, or only the list of commands. Completion in a shell needs all of them."""
    is_completing = "_MUPSCALE_COMPLETE" in os.environ
    if not is_completing and sys.argv[1:] in ([], ["--help"], ["--version"]):
        return overview()
    from mupscale_cli.cli.commands import application

    return application(None if is_completing else next((word for word in sys.argv[1:] if word[:1] != "-"), None))


def _fail(error: MupscaleError, *, cause: BaseException | None = None, code: int | None = None) -> NoReturn:
    """Print an error for people and, under `--json`, for scripts; then exit."""
    from mupscale_cli.cli import output

    output.print_error(error)
    if is_given("--debug"):
        # A cause may quote secrets that the message omits, for example an address with a token in it.
        sys.stderr.write(without_secrets("".join(traceback.format_exception(cause or error))))
    code = error.exit_code if code is None else code
    with suppress(OSError):  # such as the one that is being reported
        print_error_document(error, type(cause or error).__name__, code)
        sys.stdout.flush()
    sys.exit(code)


def _fail_as_bug(error: Exception) -> NoReturn:
    """Print an error that mupscale did not expect, and exit."""
    failure = MupscaleError(
        f"unexpected {type(error).__name__}: {error}",
        hint="this is a bug in mupscale; please report it with the output of `--debug`",
    )
    _fail(failure, cause=error, code=BUG)


def _collect_less() -> None:
    """Keep the garbage collector from scanning torch's half million objects during imports and at exit.

    This saves a quarter of the time of a process that imports torch and ends.
    """
    gc.set_threshold(50_000, 2, 2)  # full collections stay as frequent; only they free old objects
    atexit.register(gc.freeze)


def _terminate(*_: object) -> None:
    """Exit as after Ctrl-C, so that unfinished outputs are removed."""
    sys.exit(Terminated.exit_code)

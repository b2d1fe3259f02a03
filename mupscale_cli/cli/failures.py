"""Print errors as JSON documents under `--json`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mupscale_cli.errors import MupscaleError


def print_error_document(error: MupscaleError, kind: str, code: int | None = None) -> None:
    """Print the JSON document of an error, if `--json` is given.

    Args:
        error: the error.
        kind: name of its class, or of the class of its cause.
        code: exit code. Default: the error's own.
    """
    if is_given("--json"):
        from mupscale_cli.cli import output

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


def is_given(flag: str, words: Sequence[str] | None = None) -> bool:
    """Tell whether a flag is on the command line, even on one that cannot be parsed."""
    words = sys.argv[1:] if words is None else words
    return flag in (words[: words.index("--")] if "--" in words else words)


def usage_message(error: Exception) -> str:
    """Return typer's message for a usage error, without its full stop."""
    format_message = getattr(error, "format_message", None)
    return str(format_message() if format_message is not None else error).rstrip(".")

"""Errors as documents: what scripts are told under `--json`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mupscale_cli.errors import MupscaleError


def tell_scripts(error: MupscaleError, kind: str, code: int | None = None) -> None:
    """Under `--json` an error is a document, too."""
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
    """Whether a flag is on the command line, also on one that could not be parsed."""
    words = sys.argv[1:] if words is None else words
    return flag in (words[: words.index("--")] if "--" in words else words)


def message_of(error: Exception) -> str:
    """What typer says of a usage error."""
    formatted = getattr(error, "formatmessage_of", None)
    return str(formatted() if formatted is not None else error).rstrip(".")

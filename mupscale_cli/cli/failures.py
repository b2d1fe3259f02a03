"""Turn usage errors into errors of ours, and print errors as JSON documents under `--json`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import typer

from mupscale_cli.errors import MupscaleError, UsageError

NotParsed: type[Exception] = typer.BadParameter.__mro__[1]  # typer exports only its subclass


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
    return flag in _options(sys.argv[1:] if words is None else words)


def value_of(flag: str) -> str | None:
    """Return the value of an option on the command line, even on one that cannot be parsed."""
    words = [part for word in _options(sys.argv[1:]) for part in (word.split("=", 1) if word[:2] == "--" else [word])]
    return dict(pairwise(words)).get(flag)


def _options(words: Sequence[str]) -> Sequence[str]:
    return words[: words.index("--")] if "--" in words else words


def usage_error(error: Any) -> UsageError:
    """Return typer's error for a command line that it cannot parse as one of ours."""
    text = error.format_message().rstrip(".")
    command = "mupscale" if error.ctx is None else error.ctx.command_path
    return UsageError(text[:1].lower() + text[1:], hint=f"`{command} --help` shows how to use it")

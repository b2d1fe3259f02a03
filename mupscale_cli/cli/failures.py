"""Turn usage errors into errors of ours, and print errors as JSON documents under `--json`."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import typer

from mupscale_cli.errors import MupscaleError, UsageError

_EXTRA = re.compile(r"Got unexpected extra arguments?(?:\(s\))? \((.+)\)")
_NOT_A_NUMBER = re.compile(r"unable to parse string as an? (number|integer)")  # of pydantic
_NUMBER = re.compile(r"\d+(?:\.\d+|/\d+)?")

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
    words = _options(sys.argv[1:])
    # Where an option has no value, typer does not say whose it is.
    command = " ".join(["mupscale", *words[:1]]) if error.ctx is None else error.ctx.command_path
    usage = f"`{command} --help` shows how to use it"
    if (extra := _EXTRA.fullmatch(text)) is not None:
        word = extra[1].split()[0]
        return UsageError(f"`{word}` is not expected here", hint=_meant(word, words) or usage)
    if (kind := _NOT_A_NUMBER.search(text)) is not None:
        option = error.param.opts[0]
        expected = "a whole number such as 4" if kind[1] == "integer" else "a number such as 0.1"
        value = next((given for each in error.param.opts if (given := value_of(each)) is not None), None)
        is_what = "is no number" if value is None else f"is `{value}`"
        return UsageError(f"`{option}` {is_what}, expected {expected}", hint=usage)
    if getattr(error, "option_name", None) == "--color" and text.endswith("requires an argument"):
        return UsageError("`--color` has no value, expected auto, always or never", hint=usage)
    return UsageError(text[:1].lower() + text[1:], hint=usage)


def _meant(word: str, words: Sequence[str]) -> str | None:
    """Return what a number that belongs to no option was meant as, if the words before it tell."""
    place = words.index(word) if word in words else 0
    if not _NUMBER.fullmatch(word):
        return None
    if place >= 2 and words[place - 2] in ("--axis", "-a"):
        return f"did you mean `{words[place - 2]} {words[place - 1]}={word}`?"
    return f"did you mean `--factor {word}`?" if words[0] == "widen" else None

"""Turn usage errors into errors of ours, and print errors as JSON documents under `--json`."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import typer

from mupscale_cli.errors import MupscaleError, UsageError
from mupscale_cli.text import shortened

_EXTRA = re.compile(r"Got unexpected extra arguments?(?:\(s\))? \((.+)\)")
_NOT_A_NUMBER = re.compile(r"unable to parse string as an? (number|integer)")  # of pydantic
_NO_COMMAND = re.compile(r"No such command '(.+?)'.*")
_TYPESET_DASHES = "\u2013\u2014"  # en and em dash, which pasted text may have in place of hyphens
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
        word = (extra[1].split() or [extra[1]])[0]  # all of them, joined by spaces; a word may be a space itself
        return UsageError(f"`{shortened(word, 40)}` is not expected here", hint=_meant(word, words, usage))
    if (prompt := _NO_COMMAND.fullmatch(text)) is not None and prompt[1] in ("$", "mupscale"):
        return UsageError(f"`{prompt[1]}` is no command of mupscale", hint=f"omit it: {usage}")
    if (kind := _NOT_A_NUMBER.search(text)) is not None:
        option = error.param.opts[0]
        expected = "a whole number such as 4" if kind[1] == "integer" else "a number such as 0.1"
        value = next((given for each in error.param.opts if (given := value_of(each)) is not None), None)
        is_what = "is no number" if value is None else f"is `{value}`"
        return UsageError(f"`{option}` {is_what}, expected {expected}", hint=usage)
    if getattr(error, "option_name", None) == "--color" and text.endswith("requires an argument"):
        return UsageError("`--color` has no value, expected auto, always or never", hint=usage)
    if command == "mupscale" and (option := getattr(error, "option_name", None)) is not None:
        usage = f"options come after the command, as in `mupscale widen CHECKPOINT {option}`; {usage}"
    return UsageError(text[:1].lower() + text[1:], hint=usage)


def _meant(word: str, words: Sequence[str], usage: str) -> str:
    """Return what a word that belongs to no option was meant as, if the words around it tell, or else the usage."""
    place = words.index(word) if word in words else 0
    for start in range(place):
        path = " ".join(words[start : place + 1])
        if os.path.exists(path):  # noqa: PTH110 (Path.exists raises if a name is too long)
            return f"quote a path with spaces: {shlex.quote(path)}"
    if word[0] in _TYPESET_DASHES:
        plain = word.lstrip(_TYPESET_DASHES)
        return f"did you mean `{'-' if len(plain) == 1 else '--'}{plain}`? `{word[0]}` is a dash of printed text"
    is_number = _NUMBER.fullmatch(word) is not None
    if is_number and place >= 2 and words[place - 2] in ("--axis", "-a"):
        return f"did you mean `{words[place - 2]} {words[place - 1]}={word}`?"
    if words[0] != "widen":
        return usage
    if is_number:
        return f"did you mean `--factor {word}`?"
    if os.path.exists(word):  # noqa: PTH110 (the same)
        return f"`mupscale widen` takes a single checkpoint; {usage}"
    return f"did you mean `--output {shlex.quote(shortened(word, 40))}`? {usage}"

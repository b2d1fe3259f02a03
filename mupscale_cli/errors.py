"""Errors for users: a message, the place of the error, and a hint."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import ClassVar

from mupscale_cli.text import shortened

_MAX_LENGTH = 4000  # characters of a message, excerpt or hint, which may quote text of any length
# Tokens of the Hub, passwords in URLs (which lose a slash when they become paths), HTTP credentials.
_SECRET = re.compile(r"hf_[A-Za-z0-9]{16,}|(?<=:/)(/?)[^/\s@]+(?=@)|(?<=Bearer )\S+")
# Control characters, characters that reverse the direction of text, and surrogates, which cannot be encoded.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def without_secrets(text: str) -> str:
    """Replace tokens and passwords, which messages of servers, paths and URLs can contain, by `***`."""
    return _SECRET.sub(r"\1***", text)


def is_printable(text: str) -> bool:
    """Return whether a text can be printed to a terminal and encoded as UTF-8."""
    return _UNPRINTABLE.search(text) is None


def printable(text: str) -> str:
    """Make a text safe to print: escape control characters, remove secrets and limit its length."""
    escaped = _UNPRINTABLE.sub(lambda match: f"\\x{ord(match.group()):02x}", text)
    return shortened(without_secrets(escaped), _MAX_LENGTH)


_FLAGS = re.compile(r"`(?P<flags>--[^`]+)`")  # flags in a message; not a command
_FLAG = re.compile(r"--(?P<no>no-)?(?P<name>[a-z]+(?:-[a-z]+)*)(?: (?P<value>.+))?")
_PART = re.compile(r"(?P<key>[^=:]+)(?P<sign>[=:])(?P<value>.+)")
FIELDS = {"axis": "axes", "set": "settings"}  # the argument of the Python API, if its name is not the option's


def _arguments(found: re.Match[str]) -> str:
    """Return options as arguments of the Python API: `factor=2, axes={"ffn": 4}` for `--factor 2 --axis ffn=4`."""
    flags = [_FLAG.fullmatch(flag) for flag in re.split(r" (?=--)", found["flags"])]
    values: dict[str, list[str]] = {}
    for flag in flags:
        if flag is None or (flag["value"] is None and len(flags) > 1):
            return found.group()
        values.setdefault(flag["name"], []).append(_argument(flag))
    if any(len(each) > 1 and (name not in FIELDS or not each[0].startswith("{")) for name, each in values.items()):
        return found.group()  # an option that is repeated is not an argument that is
    joined = [
        f"{FIELDS[name]}={{{', '.join(part[1:-1] for part in each)}}}" if each[0].startswith("{") else each[0]
        for name, each in values.items()
    ]
    return f"`{', '.join(joined)}`"


def _argument(flag: re.Match[str]) -> str:
    """Return an option as an argument, or as an item of one: `noise_mode="free"`, `{"ffn": 4}`."""
    name = FIELDS.get(flag["name"], flag["name"].replace("-", "_"))
    if flag["value"] is None:
        return f"{name}=False" if flag["no"] else name
    if flag["name"] not in FIELDS:
        return f"{name}={_literal(flag['value'])}"
    if (part := _PART.fullmatch(flag["value"])) is None:
        return f'{name}["{flag["value"]}"]'
    value = _literal(part["value"])
    return f'{{"{part["key"]}": {value if part["sign"] == "=" else f"Size({value})"}}}'


def _literal(value: str) -> str:
    """Return a value in Python; a number, and a placeholder such as NAME or FILE:FUNCTION, stay as they are."""
    return value if re.fullmatch(r"[A-Z:|]+|-?\d+(\.\d+)?(e-?\d+)?", value) else f'"{value}"'


def install_extra(name: str) -> str:
    """Return the hint to install an extra of mupscale: which one, and where its commands are.

    It is no command itself, because that depends on where mupscale came from: a checkout, a wheel or an index.
    """
    return f"install the extra `{name}` (`mupscale help install`)"


class MupscaleError(Exception):
    """An error that the user can fix. The command line prints it without a traceback and exits with code 2.

    Args:
        message: what is wrong, where, and what was expected; no trailing full stop.
        excerpt: lines that show the place, such as a line of a recipe with a caret below it.
        hint: what to do.
    """

    exit_code: ClassVar[int] = 2

    def __init__(self, message: str, *, excerpt: str | None = None, hint: str | None = None) -> None:
        self.message = printable(message)
        self.excerpt = None if excerpt is None else printable(excerpt)
        self.hint = None if hint is None else printable(hint)
        super().__init__(self.message)

    @property
    def text(self) -> str:
        """Message, excerpt and hint as the command line prints them: options are flags."""
        return "\n".join(filter(None, (self.message, self.excerpt, self.hint and f"hint: {self.hint}")))

    def __str__(self) -> str:
        """The text for those who see an exception, and so call from Python: options are arguments."""
        return _FLAGS.sub(_arguments, self.text)


class UsageError(MupscaleError):
    """A command line that cannot be parsed."""


class RecipeError(MupscaleError):
    """A recipe that is unreadable, contradicts itself, or does not match the checkpoint."""


class CheckpointError(MupscaleError):
    """A checkpoint that is unreadable, or contradicts its header or index."""


class OtherFormatError(CheckpointError):
    """A file or folder that holds no safetensors weights but something that is recognized."""


class PlanError(MupscaleError):
    """A widening that is impossible with the requested factors, axes and options, or for the checkpoint.

    Args:
        message: what is wrong.
        excerpt: lines that show the place.
        hint: what to do.
        instead: factors of axes that may be possible instead of the requested ones.
    """

    def __init__(
        self,
        message: str,
        *,
        excerpt: str | None = None,
        hint: str | None = None,
        instead: Mapping[str, int | Fraction] | None = None,
    ) -> None:
        super().__init__(message, excerpt=excerpt, hint=hint)
        self.instead = instead or {}


class OptionError(PlanError):
    """An option that has no effect with the others, or for this checkpoint."""


class SizeError(PlanError):
    """Sizes that the function does not allow, or the class of the model.

    Args:
        message: what is wrong.
        hint: what to do.
        instead: as of a `PlanError`.
        axis: the axis that cannot have its size; None if the sizes do not go together.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        instead: Mapping[str, int | Fraction] | None = None,
        axis: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint, instead=instead)
        self.axis = axis


class OutputError(MupscaleError):
    """An output that cannot be written to the requested path."""


class OutputExistsError(OutputError):
    """An output whose path was created by something else in the meantime."""


class VerifyError(MupscaleError):
    """A verification that failed to run. Models that differ are a result, not an error."""


class JobError(MupscaleError):
    """A process that cannot cooperate with the others of its job."""


class ConfigError(PlanError):
    """Factors that the config cannot express: it would give axes other sizes than the tensors have."""


class SweepError(MupscaleError):
    """A sweep that cannot be run or read, because of its grid, data, trainer or directory."""


class PictureError(MupscaleError):
    """A picture that cannot be drawn: a library is missing, the format is unknown, or there is no data."""


class HubError(CheckpointError):
    """A model that cannot be read from the Hub, or cannot be published there."""


class UnreachableError(HubError):
    """A Hub that does not answer, or offline mode, which asks it nothing."""


class RunError(MupscaleError):
    """A job file that is unreadable, or whose steps contradict each other or existing files."""


class Interrupted(MupscaleError):  # noqa: N818 (it is not a fault)
    """Work that the user interrupted; the message says what is kept and how to continue."""

    exit_code = 130


class Terminated(Interrupted):
    """Work that a termination signal (SIGTERM) interrupted."""

    exit_code = 143

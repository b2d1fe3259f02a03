"""What the user is told when something is wrong: one message, where it happened, what to do."""

from __future__ import annotations

import re
from typing import ClassVar

from mupscale_cli.text import shortened

_MAX_LENGTH = 4000  # of a part of a message: what it quotes may be of any length
# Tokens of the Hub, passwords in addresses (a path has lost one of the slashes), credentials of HTTP.
_SECRET = re.compile(r"hf_[A-Za-z0-9]{16,}|(?<=:/)(/?)[^/\s@]+(?=@)|(?<=Bearer )\S+")
# What a terminal acts on, or shows in another order than it stands; halves of surrogate pairs cannot be written at all.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def without_secrets(text: str) -> str:
    """A text without tokens and passwords, which paths, servers and addresses may repeat."""
    return _SECRET.sub(r"\1***", text)


def is_printable(text: str) -> bool:
    """Whether a text can be shown on a terminal and written as UTF-8."""
    return _UNPRINTABLE.search(text) is None


def printable(text: str) -> str:
    """A text that does nothing to a terminal, repeats no secret and is not endless, whatever it quotes."""
    shown = without_secrets(_UNPRINTABLE.sub(lambda match: f"\\x{ord(match.group()):02x}", text))
    return shortened(shown, _MAX_LENGTH)


class MupscaleError(Exception):
    """Something the user can fix. The command line shows it without a traceback and exits with 2.

    Args:
        message: what failed, where, and what was expected; no trailing full stop.
        excerpt: lines that show the place, for instance a recipe line and a caret below it.
        hint: what to do about it.
    """

    exit_code: ClassVar[int] = 2

    def __init__(self, message: str, *, excerpt: str | None = None, hint: str | None = None) -> None:
        self.message = printable(message)
        self.excerpt = None if excerpt is None else printable(excerpt)
        self.hint = None if hint is None else printable(hint)
        super().__init__(self.message)

    def __str__(self) -> str:
        lines = [self.message]
        if self.excerpt:
            lines.append(self.excerpt)
        if self.hint:
            lines.append(f"hint: {self.hint}")
        return "\n".join(lines)


class RecipeError(MupscaleError):
    """A recipe that cannot be read, contradicts itself, or does not describe the checkpoint."""


class CheckpointError(MupscaleError):
    """A checkpoint that cannot be read, or that is not what its header or index says."""


class PlanError(MupscaleError):
    """A widening that cannot be done as asked: factors, axes, shapes, data types."""


class OutputError(MupscaleError):
    """An output that cannot be written where it was asked for."""


class OutputExistsError(OutputError):
    """An output that has appeared under the final name meanwhile."""


class VerifyError(MupscaleError):
    """A verification that could not be run; models that differ are a result, not an error."""


class JobError(MupscaleError):
    """A process of a job that cannot work together with the others."""


class ConfigError(PlanError):
    """Factors that the config cannot express: who reads it would derive other sizes."""


class SweepError(MupscaleError):
    """A sweep that cannot be run or read: its grid, its data, its trainer, its directory."""


class PictureError(MupscaleError):
    """A picture that cannot be drawn: no library, no kind of image that is known, no figures to show."""


class HubError(CheckpointError):
    """A model of the Hub that cannot be read, or a publication that the Hub refuses."""


class RunError(MupscaleError):
    """A job file that cannot be read, or whose steps contradict one another or what is there."""


class Interrupted(MupscaleError):  # noqa: N818 (nothing is wrong)
    """Work that was stopped from outside; says what of it is kept and how it goes on."""

    exit_code = 130


class Terminated(Interrupted):
    """The same, by the signal that asks a process to end."""

    exit_code = 143

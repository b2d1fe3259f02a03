"""What the user is told when something is wrong: one message, where it happened, what to do."""

from __future__ import annotations

from typing import ClassVar


class MupscaleError(Exception):
    """Something the user can fix. The command line shows it without a traceback and exits with 2.

    Args:
        message: what failed, where, and what was expected; no trailing full stop.
        excerpt: lines that show the place, for instance a recipe line and a caret below it.
        hint: what to do about it.
    """

    exit_code: ClassVar[int] = 2

    def __init__(self, message: str, *, excerpt: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.excerpt = excerpt
        self.hint = hint

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

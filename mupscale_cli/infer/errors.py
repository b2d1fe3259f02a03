"""Errors of drafting a recipe."""

from __future__ import annotations

from mupscale_cli.errors import MupscaleError


class InferError(MupscaleError):
    """No recipe could be drafted for an architecture, or the draft failed its proof.

    Args:
        message: what is wrong.
        axes: the axes that cause the error, where they are known.
        excerpt: lines to show below the message.
        hint: what the user can do.
    """

    def __init__(
        self, message: str, *, axes: frozenset[str] = frozenset(), excerpt: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, excerpt=excerpt, hint=hint)
        self.axes = axes


class TinyError(MupscaleError):
    """An architecture cannot be built at a tiny size."""


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, with the next one if it ends in a colon; or its repr."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()] or [repr(error)]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]

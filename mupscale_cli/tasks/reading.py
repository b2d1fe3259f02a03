"""What the user says about a checkpoint that its files do not say, or say wrongly. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mupscale_cli.checkpoints.layouts.opening import Choice


@dataclass(frozen=True)
class Reading:
    """How to read a checkpoint.

    Attributes:
        settings: values of keys of its config, dotted within sections, that it lacks or has wrong.
        layout: the trainer whose layout it has; None to find it.
        weights_key: dotted keys that lead to the weights in a trainer's file; None for the usual ones.
    """

    settings: Mapping[str, Any] | None = None
    layout: str | None = None
    weights_key: str | None = None

    @property
    def choice(self) -> Choice:
        """The form of a trainer's checkpoint."""
        return Choice(self.layout, self.weights_key)

    @property
    def options(self) -> tuple[str, ...]:
        """What the user said, as options of a command."""
        settings = (("--set", f"{key}={json.dumps(value)}") for key, value in (self.settings or {}).items())
        form = ((f"--{name.replace('_', '-')}", text) for name, text in self.choice.said.items())
        return tuple(word for option in (*settings, *form) for word in option)


AS_STORED = Reading()

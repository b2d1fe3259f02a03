"""Options for the optimizer state of a checkpoint. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mupscale_cli.checkpoints.reading import Checkpoint
from mupscale_cli.errors import PlanError
from mupscale_cli.optimizers.finding import find_optimizer
from mupscale_cli.optimizers.rules.table import optimizer_rule
from mupscale_cli.optimizers.state_plan import POLICIES, Policy


@dataclass(frozen=True)
class StateOptions:
    """Which optimizer state to widen, and how.

    Attributes:
        optimizer: the path of the state; `auto` looks next to the checkpoint's weights, `none` omits the state.
        policy: `copy`, `reset-new` or `reset`.
        key: dotted keys that lead to the state in a file that holds more.
        kinds: the optimizers that the state belongs to; empty to let its settings and keys tell.

    Raises:
        PlanError: the policy or an optimizer is unknown.
    """

    optimizer: str | Path = "auto"
    policy: Policy = "copy"
    key: str | None = None
    kinds: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise PlanError(f"unknown optimizer policy `{self.policy}`", hint=f"known: {', '.join(POLICIES)}")
        for name in self.kinds:
            optimizer_rule(name)

    def find(self, checkpoint: Checkpoint) -> Path | None:
        """Return the path of the state to widen, None if there is none."""
        if self.optimizer == "none":
            return None
        return find_optimizer(checkpoint) if self.optimizer == "auto" else Path(self.optimizer)

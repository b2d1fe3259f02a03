"""What the user asks for the optimizer's state. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mupscale_cli.checkpoints.reading import Checkpoint
from mupscale_cli.errors import PlanError
from mupscale_cli.optimizers.finding import find_optimizer
from mupscale_cli.optimizers.state_plan import POLICIES, Policy


@dataclass(frozen=True)
class StateOptions:
    """What to do with the optimizer's state.

    Attributes:
        optimizer: where it is; `auto` is beside the checkpoint if it is there, `none` leaves it.
        policy: `copy`, `reset-new` or `reset`.
        key: dotted keys that lead to it in a file that holds more.
        allow_pickle: read distributed checkpoints, whose metadata are a pickle.

    Raises:
        PlanError: there is no such policy.
    """

    optimizer: str | Path = "auto"
    policy: Policy = "copy"
    key: str | None = None
    allow_pickle: bool = False

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise PlanError(f"there is no optimizer policy `{self.policy}`", hint=f"known: {', '.join(POLICIES)}")

    def find(self, checkpoint: Checkpoint) -> Path | None:
        """The state to carry, if there is one."""
        if self.optimizer == "none":
            return None
        return find_optimizer(checkpoint) if self.optimizer == "auto" else Path(self.optimizer)

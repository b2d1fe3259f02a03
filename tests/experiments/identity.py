"""Without noise a widened model takes the steps that the narrow one would have taken."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from experiments.tasks import Task
from experiments.training import continued, decay, train, train_narrow, widen, widened


@dataclass(frozen=True)
class Identity:
    """Losses of the narrow model that goes on, and of its widened copy.

    Attributes:
        factor: width over narrow width.
        narrow: losses of each step.
        wide: the same of the widened model, trained with mapped hyperparameters and carried state.
        standard: the same with one learning rate for all tensors.
    """

    factor: int
    narrow: tuple[float, ...]
    wide: tuple[float, ...]
    standard: tuple[float, ...]

    @property
    def difference(self) -> float:
        """The largest relative difference of the losses of a step."""
        return max(abs(wide / narrow - 1) for wide, narrow in zip(self.wide, self.narrow, strict=True))


def measure_identity(task: Task, folder: Path, factor: int, steps: int, before: int = 10) -> Identity:
    """Train narrow and wide side by side in float64.

    Args:
        task: what on.
        folder: for the checkpoints.
        factor: width over narrow width.
        steps: of both.
        before: steps of the narrow model before it is widened, so that there is state to carry.
    """
    dtype = torch.float64
    data = task.data().to(dtype)
    narrow = train_narrow(task, folder / "identity", task.lr, dtype, before)

    def losses(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[float, ...]:
        return train(model, optimizer, data.batches(task.batch_size, steps, 0), steps, decay).losses

    wide = widen(narrow, factor)
    return Identity(
        factor,
        losses(*continued(narrow, narrow.lr, dtype)),
        losses(*widened(narrow, wide, factor, narrow.lr, dtype=dtype)),
        losses(*widened(narrow, wide, factor, narrow.lr, mapped=False, dtype=dtype)),
    )

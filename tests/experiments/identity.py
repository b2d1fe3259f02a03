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
        difference: the largest relative difference of the losses of a step, narrow and wide.
    """

    factor: int
    narrow: tuple[float, ...]
    wide: tuple[float, ...]
    standard: tuple[float, ...]
    difference: float


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

    file = widen(narrow, factor)
    going_on = losses(*continued(narrow, narrow.lr, dtype))
    wide = losses(*widened(narrow, file, factor, narrow.lr, dtype=dtype))
    standard = losses(*widened(narrow, file, factor, narrow.lr, mapped=False, dtype=dtype))
    difference = max(abs(after / before - 1) for after, before in zip(wide, going_on, strict=True))
    return Identity(factor, going_on, wide, standard, difference)

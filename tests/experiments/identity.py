"""Measure how closely a model widened without noise trains like the narrow one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from experiments.tasks import Task
from experiments.training import continued, decay, train, train_narrow, widen, widened


@dataclass(frozen=True)
class Identity:
    """Losses of the narrow model, which continues training, and of its widened copy.

    Attributes:
        factor: width over narrow width.
        narrow: the loss of each step of the narrow model.
        wide: the losses of the widened model with mapped hyperparameters and carried optimizer state.
        standard: the losses of the widened model with one learning rate for all tensors.
        difference: the largest relative difference between `narrow` and `wide`.
    """

    factor: int
    narrow: tuple[float, ...]
    wide: tuple[float, ...]
    standard: tuple[float, ...]
    difference: float


def measure_identity(task: Task, folder: Path, factor: int, steps: int, before: int = 10) -> Identity:
    """Train the narrow and the widened model on the same batches in float64.

    Args:
        task: the task.
        folder: a folder for checkpoints.
        factor: width over narrow width.
        steps: number of steps after widening.
        before: number of steps before widening; they give the optimizer a state to carry.
    """
    dtype = torch.float64
    data = task.data().to(dtype)
    narrow = train_narrow(task, folder / "identity", task.lr, dtype, before)

    def losses(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[float, ...]:
        return train(model, optimizer, data.batches(task.batch_size, steps, 0), steps, decay).losses

    file = widen(narrow, factor)
    narrow_losses = losses(*continued(narrow, narrow.lr, dtype))
    wide = losses(*widened(narrow, file, factor, narrow.lr, dtype=dtype))
    standard = losses(*widened(narrow, file, factor, narrow.lr, mapped=False, dtype=dtype))
    difference = max(abs(after / before - 1) for after, before in zip(wide, narrow_losses, strict=True))
    return Identity(factor, narrow_losses, wide, standard, difference)

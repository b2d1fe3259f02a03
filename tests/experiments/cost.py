"""Measure how much noise raises the loss before the first step, at every width."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from experiments.tasks import Task
from experiments.training import load, loss_of, train_narrow, widen
from experiments.transfer import Losses, power

FACTORS = (2, 4, 8, 16, 32)
NOISES = (-6, -4, -2, 0)  # exponents e of 2^(e/2)
_SEEDS = (0, 1, 2, 3)


@dataclass(frozen=True)
class Cost:
    """Losses right after widening. Batch normalization uses the statistics of the batch.

    Attributes:
        task: the task's name.
        title: the title of its row.
        narrow: the loss of the narrow model, in nats.
        losses: losses of widened models with noise, one per seed, by the noise's exponent and the factor.
    """

    task: str
    title: str
    narrow: float
    losses: dict[int, dict[int, Losses]]


def measure_cost(task: Task, folder: Path, factors: tuple[int, ...] = FACTORS) -> Cost:
    """Widen a narrow model to every width with every noise and measure the losses, without any training.

    Args:
        task: the task.
        folder: a folder for checkpoints.
        factors: widths over the narrow width.
    """
    data = task.data()
    narrow = train_narrow(task, folder, task.lr)

    @torch.no_grad()
    def loss(file: Path, factor: int) -> float:
        return float(loss_of(load(task, file, factor), data.seen))

    return Cost(
        task.name,
        task.title,
        loss(narrow.file, 1),
        {
            exponent: {
                factor: tuple(loss(widen(narrow, factor, noise=power(exponent), seed=seed), factor) for seed in _SEEDS)
                for factor in factors
            }
            for exponent in NOISES
        },
    )

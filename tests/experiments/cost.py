"""What noise costs before the first step, by width: how much of it copies average out."""

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
    """Losses right after widening, those of batch statistics where there is batch normalisation.

    Attributes:
        task: its name.
        title: of its row.
        narrow: loss of the narrow model.
        losses: of widened models with noise, by the noise's exponent and the factor.
    """

    task: str
    title: str
    narrow: float
    losses: dict[int, dict[int, Losses]]


def measure_cost(task: Task, folder: Path, factors: tuple[int, ...] = FACTORS) -> Cost:
    """Widen a narrow model to every width with every noise, and train none of them; in `folder` are checkpoints."""
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

"""Train models in memory and compare the losses of a narrow run that continues with those of its growth."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from mupscale_cli.plan import Plan
from mupscale_cli.verification.precision import everything_in, rounding_factor

Loss = Callable[[nn.Module, int], torch.Tensor]


@dataclass
class Run:
    """A model that trains with some optimizers and schedulers."""

    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    loss: Loss
    schedulers: list[Any] = field(default_factory=list)
    step: int = 0
    losses: list[float] = field(default_factory=list)

    def train(self, steps: int, before_step: Callable[[nn.Module], None] = lambda _: None) -> list[float]:
        """Take some steps; return the loss before each."""
        with everything_in(torch.float64):
            for _ in range(steps):
                before_step(self.model)
                loss = self.loss(self.model, self.step)
                for optimizer in self.optimizers:
                    optimizer.zero_grad()
                loss.backward()
                for each in (*self.optimizers, *self.schedulers):
                    each.step()
                self.losses.append(loss.item())
                self.step += 1
        return self.losses[-steps:]

    def twin(self) -> Run:
        """Return a copy in the same state that shares nothing."""
        return copy.deepcopy(self)

    def grown(self, result: Any) -> Run:
        """Return the run that continues with the lists that `grow` returned."""
        return Run(result.model, result.optimizer or [], self.loss, result.scheduler or [], self.step)


def tokens_loss(model: nn.Module, step: int) -> torch.Tensor:
    """Return a language model's loss on random tokens."""
    tokens = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(step))
    logits = model(tokens).logits
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def vectors_loss(model: nn.Module, step: int) -> torch.Tensor:
    """Return a regression loss on random vectors of five numbers."""
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    return (model(inputs) - torch.randn(4, 3, generator=generator, dtype=torch.float64)).square().mean()


def follows(narrow: Run, wide: Run, plan: Plan, steps: int = 20) -> tuple[float, float]:
    """Return the largest relative difference of two runs' losses, and what rounding allows (page `theory`).

    A copy of the narrow run moves every parameter to the next number above or below before each step. How far its
    losses come apart is the response to one rounding; the products of the wide model amount to a multiple of it.
    """
    disturbed = narrow.twin()
    generator = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def disturb(model: nn.Module) -> None:
        for parameter in model.parameters():
            up = torch.randint(0, 2, parameter.shape, generator=generator).bool()
            limit = torch.full_like(parameter, math.inf)
            parameter.copy_(torch.nextafter(parameter, torch.where(up, limit, -limit)))

    expected = narrow.train(steps)
    unit = torch.finfo(torch.float64).eps
    response = max(difference(expected, disturbed.train(steps, disturb)), unit)
    assert difference(expected[:1], expected[-1:]) > 1e-4, "the steps change nothing"
    return difference(expected, wide.train(steps)), rounding_factor(plan, torch.float64)[0] * response


def difference(expected: list[float], losses: list[float]) -> float:
    """Return the largest relative difference of two series."""
    return max(abs(a - b) / abs(a) for a, b in zip(expected, losses, strict=True))

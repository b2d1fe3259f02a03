"""Exact implementations of optimizers that torch lacks or computes approximately, for verifying training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mupscale_cli.optimizers.rules import muon_shape_factor


class Lion(torch.optim.Optimizer):
    """Lion (Chen et al., arXiv 2302.06675, algorithm 2)."""

    def __init__(
        self, params: Any, lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002 (torch's signature)
        """Take one step."""
        for group in self.param_groups:
            first, second = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                average = self.state[parameter].setdefault("exp_avg", torch.zeros_like(parameter))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(group["lr"] * torch.lerp(parameter.grad, average, first).sign())
                average.lerp_(parameter.grad, 1 - second)


class ExactMuon(torch.optim.Optimizer):
    """torch.optim.Muon with an exact orthogonalization instead of Newton-Schulz in bfloat16."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        adjust_lr_fn: str | None = None,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "weight_decay": weight_decay,
                "momentum": momentum,
                "nesterov": nesterov,
                "adjust_lr_fn": adjust_lr_fn,
            },
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002 (torch's signature)
        """Take one step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                buffer = self.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
                buffer.lerp_(parameter.grad, 1 - group["momentum"])
                direction = torch.lerp(parameter.grad, buffer, group["momentum"]) if group["nesterov"] else buffer
                rate = group["lr"] * muon_shape_factor(tuple(parameter.shape), group)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(rate * self._orthogonalize(direction))

    @staticmethod
    def _orthogonalize(matrix: Tensor) -> Tensor:
        """Return U V^T of the singular value decomposition, without the directions that have no gradient.

        The singular values of those directions are rounding errors, near 1e-16 of the largest. The threshold is far
        above that, so both models drop the same directions, and far below what Newton-Schulz would raise.
        """
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        kept = values > values[0] * torch.finfo(matrix.dtype).eps ** 0.5
        product: Tensor = left[:, kept] @ right[kept]
        return product

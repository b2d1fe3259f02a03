"""Optimizers of single elements that are not relatives of Adam."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from mupscale_cli.optimizers.exact.base import ExactOptimizer, buffer


class Lion(ExactOptimizer):
    """Lion (Chen et al., arXiv 2302.06675, algorithm 2)."""

    usual: ClassVar[Mapping[str, Any]] = {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.0}

    def update(self, parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        first, second = group["betas"]
        average = buffer(state, "exp_avg", parameter)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.sub_(group["lr"] * torch.lerp(gradient, average, first).sign())
        average.lerp_(gradient, 1 - second)


class SophiaG(ExactOptimizer):
    """Sophia-G (Liu et al., arXiv 2305.14342, algorithm 3); the step's own gradient estimates the Hessian."""

    usual: ClassVar[Mapping[str, Any]] = {"lr": 1e-4, "betas": (0.965, 0.99), "rho": 0.04, "weight_decay": 0.1}

    def update(self, parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        first, second = group["betas"]
        average, hessian = buffer(state, "exp_avg", parameter), buffer(state, "hessian", parameter)
        average.lerp_(gradient, 1 - first)
        hessian.lerp_(gradient.square(), 1 - second)
        ratio = average.abs().div(group["rho"] * hessian).nan_to_num(0.0).clamp(max=1)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.sub_(group["lr"] * average.sign() * ratio)

"""Optimizers of whole matrices, with an exact orthogonalization instead of Newton-Schulz in bfloat16."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from mupscale_cli.optimizers.exact.base import ExactOptimizer, buffer
from mupscale_cli.optimizers.rules.matrices import muon_shape_factor


class ExactMuon(ExactOptimizer):
    """torch.optim.Muon with an exact orthogonalization."""

    usual: ClassVar[Mapping[str, Any]] = {
        "lr": 1e-3,
        "weight_decay": 0.1,
        "momentum": 0.95,
        "nesterov": True,
        "adjust_lr_fn": None,
    }

    def update(self, parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        average = buffer(state, "momentum_buffer", parameter).lerp_(gradient, 1 - group["momentum"])
        direction = torch.lerp(gradient, average, group["momentum"]) if group.get("nesterov", True) else average
        rate = group["lr"] * muon_shape_factor(tuple(parameter.shape), group)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.sub_(rate * self.normalized(orthogonalized(direction.flatten(1)), state, group).view_as(parameter))

    def normalized(self, matrix: Tensor, _state: dict[str, Any], _group: Mapping[str, Any]) -> Tensor:
        """Return the direction of the step, given the orthogonalized momentum."""
        return matrix


class NorMuon(ExactMuon):
    """NorMuon (Li et al., arXiv 2510.05491, algorithm 1): rows are divided by the root of their average square."""

    usual: ClassVar[Mapping[str, Any]] = {
        "lr": 1e-3,
        "weight_decay": 0.1,
        "momentum": 0.95,
        "beta2": 0.95,
        "adjust_lr_fn": None,
    }

    def normalized(self, matrix: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> Tensor:
        mean = matrix.square().mean(dim=self.averaged(matrix), keepdim=True)
        second = buffer(state, "second_momentum_buffer", mean).lerp_(mean, 1 - group["beta2"])
        scaled = matrix / second.sqrt()
        result: Tensor = scaled * (matrix.norm() / scaled.norm())
        return result

    def averaged(self, _matrix: Tensor) -> int:
        """Return the dimension whose squares are averaged."""
        return -1


class NorMuonPlus(NorMuon):
    """NorMuon after Muon+ (arXiv 2602.21545): the matrix first gets the norm of an orthogonal one, as in nanochat."""

    def normalized(self, matrix: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> Tensor:
        return super().normalized(matrix * (min(matrix.shape) ** 0.5 / matrix.norm()), state, group)

    def averaged(self, matrix: Tensor) -> int:
        return -1 if matrix.shape[0] >= matrix.shape[1] else -2


class Shampoo(ExactOptimizer):
    """Shampoo (Gupta et al., arXiv 1802.09568, algorithm 2) with sums from zero, and epsilon before the root."""

    usual: ClassVar[Mapping[str, Any]] = {"lr": 1e-3, "weight_decay": 0.1, "epsilon": 1e-4}  # as in torch_optimizer

    def update(self, parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        direction = gradient
        for side, size in enumerate(gradient.shape):
            unfolded = gradient.movedim(side, 0).reshape(size, -1)
            total = buffer(state, f"precond_{side}", unfolded @ unfolded.T).add_(unfolded @ unfolded.T)
            values, vectors = torch.linalg.eigh(total)
            powers = (values.clamp(min=0) + group["epsilon"]) ** (-0.5 / gradient.dim())
            root = (vectors * powers) @ vectors.T
            direction = torch.tensordot(root, direction, dims=([1], [side])).movedim(0, side)
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * direction)


def orthogonalized(matrix: Tensor) -> Tensor:
    """Return U V^T of the singular value decomposition, without the directions that have no gradient.

    The singular values of those directions are rounding errors, near 1e-16 of the largest. The threshold is far
    above that, so both models drop the same directions, and far below what Newton-Schulz would raise.
    """
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    kept = values > values[0] * torch.finfo(matrix.dtype).eps ** 0.5
    product: Tensor = left[:, kept] @ right[kept]
    return product

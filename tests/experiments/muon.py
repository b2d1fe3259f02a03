"""Muon for the matrices between hidden units and AdamW for the rest, in one optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import mupscale_cli as mupscale
from mupscale_cli.optimizers.rules.matrices import muon_shape_factor

_ITERATION = (3.4445, -4.7750, 2.0315)  # coefficients of Jordan's Newton-Schulz iteration
MUON = {"momentum": 0.95, "adjust_lr_fn": "match_rms_adamw"}  # so that one learning rate is right for both parts
ADAMW = {"betas": (0.9, 0.95), "eps": 1e-8}


class MuonBesideAdamW(torch.optim.Optimizer):
    """Muon (Jordan, https://kellerjordan.github.io/posts/muon/) beside AdamW; `use_muon` of a group tells which."""

    def __init__(self, groups: Any, lr: float = 1e-3, **settings: Any) -> None:
        super().__init__(groups, {"lr": lr, **settings})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Take a step with every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            direction = _orthogonal if group["use_muon"] else _normalized
            for parameter in (p for p in group["params"] if p.grad is not None):
                change = direction(parameter.grad, self.state[parameter], group)
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * change)


def _orthogonal(gradient: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> Tensor:
    if not state:
        state["momentum_buffer"] = torch.zeros_like(gradient)
    average = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
    matrix = gradient.lerp(average, group["momentum"])
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    a, b, c = _ITERATION
    for _ in range(5):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return (x.T if tall else x) * muon_shape_factor(tuple(matrix.shape), group)


def _normalized(gradient: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> Tensor:
    if not state:
        state.update(step=0, exp_avg=torch.zeros_like(gradient), exp_avg_sq=torch.zeros_like(gradient))
    state["step"] += 1
    first, second = group["betas"]
    average = state["exp_avg"].lerp_(gradient, 1 - first) / (1 - first ** state["step"])
    squares = state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
    return average / ((squares / (1 - second ** state["step"])).sqrt() + group["eps"])


def plain_groups(model: nn.Module, weight_decay: float) -> Iterator[dict[str, Any]]:
    """Yield groups for a model that is not widened: hidden matrices, other matrices, and gains."""
    named = list(model.named_parameters())
    for is_matrix, is_hidden in ((True, True), (True, False), (False, False)):
        members = [(n, p) for n, p in named if (p.dim() > 1, ".layers." in n and p.dim() > 1) == (is_matrix, is_hidden)]
        yield {
            "params": [p for _, p in members],
            "param_names": [n for n, _ in members],
            "weight_decay": weight_decay if is_matrix else 0.0,
            "use_muon": is_hidden,
            **(MUON if is_hidden else ADAMW),
        }


def mapped_groups(model: nn.Module, wide: Path, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Return groups under which a widened model trains like the narrow one."""
    common: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
    hidden = mupscale.param_groups(model, wide, optimizer="muon", use_muon=True, **common, **MUON)
    return hidden + mupscale.param_groups(model, wide, beside="muon", use_muon=False, **common, **ADAMW)

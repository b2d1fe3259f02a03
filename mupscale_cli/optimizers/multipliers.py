"""The rules of the table applied: what a tensor's hyperparameters and state are multiplied by. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mupscale_cli.optimizers.rules import NORM_WEIGHT, OptimizerRule, StateKind

_GRADIENT_POWERS: Mapping[StateKind, int] = {"same": 0, "linear": 1, "quadratic": 2}


@dataclass(frozen=True, slots=True)
class Multipliers:
    """By what the hyperparameters of a tensor are multiplied when it is widened (dimensionless).

    Attributes:
        lr: learning rate.
        eps: the term beside the root of the second moment.
        weight_decay: as the optimizer defines it.
        clip: weight of the tensor's squared gradient norm in the global norm.
    """

    lr: float
    eps: float
    weight_decay: float
    clip: float


@dataclass(frozen=True, slots=True)
class ScaledTensor:
    """What widening did to one tensor, as far as its training is concerned.

    Attributes:
        name: of the wide tensor.
        parts: coefficient and multiplicity of each of its parts.
        shape: before.
        wide_shape: after.
        offset: o where the layer uses o + w.
    """

    name: str
    parts: tuple[tuple[float, int], ...]
    shape: tuple[int, ...]
    wide_shape: tuple[int, ...]
    offset: int = 0


def state_scale(kind: StateKind, coefficient: float, multiplicity: float) -> float:
    """By what a state entry is multiplied: (1 / (m c)) ** power, from g' = g / (m c).

    Args:
        kind: `linear`, `quadratic` or `same`; a copy of the weight is expanded like the weight.
        coefficient: c.
        multiplicity: m.
    """
    return math.pow(multiplicity * coefficient, -_GRADIENT_POWERS[kind])


def multipliers(
    rule: OptimizerRule, coefficient: float, multiplicity: float, *, decoupled: bool | None = None
) -> Multipliers:
    """The multipliers of a tensor's hyperparameters, before any factor for its shape (page `theory`).

    Args:
        rule: the optimizer.
        coefficient: c.
        multiplicity: m.
        decoupled: how its weight decay works; the optimizer's default if not given.
    """
    formulas = rule.formulas(rule.decoupled if decoupled is None else decoupled)
    values = {key: formula(coefficient, multiplicity) for key, formula in formulas.items()}
    return Multipliers(**{"eps": 1.0, **values, "clip": NORM_WEIGHT(coefficient, multiplicity)})


def tensor_multipliers(
    tensor: ScaledTensor, rule: OptimizerRule, decoupled: bool, settings: Mapping[str, Any]
) -> Multipliers:
    """The multipliers of one tensor.

    Where its parts would need different ones (segments with scales of their own), no learning rate
    of the tensor is exact; those of its first part are taken, and `is_exact` says so.

    Args:
        tensor: the wide tensor.
        rule: the optimizer.
        decoupled: how its weight decay works.
        settings: of its group, on which a factor for the shape can depend.
    """
    found = multipliers(rule, *tensor.parts[0], decoupled=decoupled)
    if rule.shape_factor is None or len(tensor.shape) != 2 or 0 in (*tensor.shape, *tensor.wide_shape):
        return found
    lr = found.lr * rule.shape_factor(tensor.shape, settings) / rule.shape_factor(tensor.wide_shape, settings)
    return replace(found, lr=lr, weight_decay=1 / lr if decoupled else found.weight_decay)


def is_exact(tensor: ScaledTensor, rule: OptimizerRule) -> bool:
    """Whether one set of hyperparameters serves every part of a tensor."""
    return len({multipliers(rule, c, m) for c, m in tensor.parts}) == 1

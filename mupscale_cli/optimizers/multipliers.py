"""Apply an optimizer's rule to a tensor: the multipliers of its hyperparameters and state. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from typing import Any

from mupscale_cli.optimizers.rules import NORM_WEIGHT, OptimizerRule, StateKind
from mupscale_cli.plan.types import Block

_GRADIENT_POWERS: Mapping[StateKind, int] = {"same": 0, "linear": 1, "quadratic": 2}


@dataclass(frozen=True, slots=True)
class Multipliers:
    """The factors that widening multiplies a tensor's hyperparameters by (dimensionless).

    Attributes:
        lr: factor of the learning rate.
        eps: factor of the term that is added to the root of the second moment.
        weight_decay: factor of the weight decay, as the optimizer defines it.
        clip: weight of the tensor's squared gradient norm in the global norm.
    """

    lr: float
    eps: float
    weight_decay: float
    clip: float


@dataclass(frozen=True, slots=True)
class ScaledTensor:
    """How widening scaled one tensor, as far as training depends on it.

    Attributes:
        name: the name of the wide tensor.
        parts: coefficient and multiplicity of each of its parts.
        shape: the shape before widening.
        wide_shape: the shape after widening.
        offset: o if the layer uses o + w.
        block: the block that the tensor belongs to; None outside of stacks of blocks.
    """

    name: str
    parts: tuple[tuple[float, int], ...]
    shape: tuple[int, ...]
    wide_shape: tuple[int, ...]
    offset: int = 0
    block: Block | None = None


def state_scale(kind: StateKind, coefficient: float, multiplicity: float) -> float:
    """Return the factor of a state entry: (1 / (m c)) ** power, which follows from g' = g / (m c) (page `theory`).

    Args:
        kind: `linear`, `quadratic` or `same`; an entry of the kind `weight` is widened like the weight itself.
        coefficient: c.
        multiplicity: m.
    """
    return math.pow(multiplicity * coefficient, -_GRADIENT_POWERS[kind])


def multipliers(
    rule: OptimizerRule, coefficient: float, multiplicity: float, *, decoupled: bool | None = None
) -> Multipliers:
    """Return the multipliers of a tensor's hyperparameters, without any factor for its shape (page `theory`).

    Args:
        rule: the optimizer's rule.
        coefficient: c.
        multiplicity: m.
        decoupled: whether weight decay is decoupled. Default: the optimizer's.
    """
    formulas = rule.formulas(rule.decoupled if decoupled is None else decoupled)
    values = {key: formula(coefficient, multiplicity) for key, formula in formulas.items()}
    return Multipliers(**{"eps": 1.0, **values, "clip": NORM_WEIGHT(coefficient, multiplicity)})


def tensor_multipliers(
    tensor: ScaledTensor, rule: OptimizerRule, decoupled: bool, settings: Mapping[str, Any]
) -> Multipliers:
    """Return the multipliers of one tensor.

    If its parts need different multipliers (segments with their own scales), no learning rate of the tensor is exact.
    The result is then that of the first part, and `is_exact` is false.

    Args:
        tensor: the wide tensor.
        rule: the optimizer's rule.
        decoupled: whether weight decay is decoupled.
        settings: the settings of the tensor's group, which a factor for the shape may depend on.
    """
    by_scale = multipliers(rule, *tensor.parts[0], decoupled=decoupled)
    if rule.shape_factor is None or len(tensor.shape) != 2 or 0 in (*tensor.shape, *tensor.wide_shape):
        return by_scale
    lr = by_scale.lr * rule.shape_factor(tensor.shape, settings) / rule.shape_factor(tensor.wide_shape, settings)
    return replace(by_scale, lr=lr, weight_decay=1 / lr if decoupled else by_scale.weight_decay)


def is_exact(tensor: ScaledTensor, rule: OptimizerRule) -> bool:
    """Tell whether one set of hyperparameters is exact for every part of a tensor."""
    first, *others = (astuple(multipliers(rule, c, m)) for c, m in tensor.parts)
    return all(math.isclose(a, b, rel_tol=1e-12) for other in others for a, b in zip(first, other, strict=True))

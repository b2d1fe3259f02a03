"""Apply an optimizer's rule to a tensor: the multipliers of its hyperparameters and state. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mupscale_cli.optimizers.rules.powers import NORM_WEIGHT, UNCHANGED, Powers, Ratios
from mupscale_cli.optimizers.rules.rule import OptimizerRule
from mupscale_cli.plan.types import Block


@dataclass(frozen=True, slots=True)
class Multipliers:
    """The factors that widening multiplies a tensor's hyperparameters by (dimensionless).

    Attributes:
        lr: factor of the learning rate.
        eps: factor of the term that is added to the root of the second moment.
        weight_decay: factor of the weight decay, as the optimizer defines it.
        clip: weight of the tensor's squared gradient norm in the global norm.
        further: factors of further settings of its group, by their names; several for the numbers of a pair.
    """

    lr: float
    eps: float
    weight_decay: float
    clip: float
    further: tuple[tuple[str, float | tuple[float, ...]], ...] = ()


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

    @property
    def ratios(self) -> Ratios:
        """How many times as large the sides of a matrix became."""
        return Ratios.of(self.shape, self.wide_shape)


def multipliers(
    rule: OptimizerRule,
    coefficient: float,
    multiplicity: float,
    *,
    decoupled: bool | None = None,
    ratios: Ratios = UNCHANGED,
) -> Multipliers:
    """Return the multipliers of a tensor's hyperparameters, without any factor for its shape (page `theory`).

    Args:
        rule: the optimizer's rule.
        coefficient: c.
        multiplicity: m.
        decoupled: whether weight decay is decoupled. Default: the optimizer's.
        ratios: how many times as large the sides of the tensor become.
    """
    formulas = rule.formulas(rule.decoupled if decoupled is None else decoupled)
    values = {key: formula(coefficient, multiplicity, ratios) for key, formula in formulas.items()}

    def value(powers: Powers | tuple[Powers, ...]) -> float | tuple[float, ...]:
        if isinstance(powers, Powers):
            return powers(coefficient, multiplicity, ratios)
        return tuple(each(coefficient, multiplicity, ratios) for each in powers)

    further = tuple((key, value(powers)) for key, powers in rule.scaled.items())
    return Multipliers(
        **{"eps": 1.0, "weight_decay": 1.0, **values, "clip": NORM_WEIGHT(coefficient, multiplicity)}, further=further
    )


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
    by_scale = multipliers(rule, *tensor.parts[0], decoupled=decoupled, ratios=tensor.ratios)
    if rule.shape_factor is None or len(tensor.shape) < 2 or 0 in (*tensor.shape, *tensor.wide_shape):
        return by_scale
    lr = by_scale.lr * rule.shape_factor(tensor.shape, settings) / rule.shape_factor(tensor.wide_shape, settings)
    return replace(by_scale, lr=lr, weight_decay=1 / lr if decoupled else by_scale.weight_decay)


def is_exact(tensor: ScaledTensor, rule: OptimizerRule) -> bool:
    """Tell whether one set of hyperparameters is exact for every part of a tensor."""
    first, *others = (_numbers(multipliers(rule, c, m)) for c, m in tensor.parts)
    return all(math.isclose(a, b, rel_tol=1e-12) for other in others for a, b in zip(first, other, strict=True))


def _numbers(factors: Multipliers) -> tuple[float, ...]:
    further = (value if isinstance(value, tuple) else (value,) for _, value in factors.further)
    return factors.lr, factors.eps, factors.weight_decay, factors.clip, *(each for values in further for each in values)

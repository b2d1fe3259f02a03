"""Apply an optimizer's rule to a tensor: the multipliers of its hyperparameters and state. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from mupscale_cli.optimizers.rules.powers import NORM_WEIGHT, UNCHANGED, Powers, Ratios
from mupscale_cli.optimizers.rules.rule import OptimizerRule
from mupscale_cli.plan.types import Block, TensorPlan

CLIP_WEIGHT = "clip_weight"  # key of a group's weight in the global norm of the gradient


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

    @classmethod
    def of(cls, tensor: TensorPlan, name: str) -> ScaledTensor:
        """Return the scaling of a planned tensor under a name."""
        return cls(name, tensor.parts, tensor.source.shape, tensor.target.shape, tensor.offset, tensor.block)

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

    If its parts need different multipliers (segments with their own scales or numbers of copies), the result is that
    of the first part, and `spreads` tells how far that is from what others need.

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


def spreads(
    tensor: ScaledTensor,
    rule: OptimizerRule,
    decoupled: bool | None = None,
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, float]:
    """Return how far apart the parts of a tensor need its settings, if no single value is right for all of them.

    Decoupled weight decay acts through lr x wd, which is the same in every part unless the optimizer defines another.

    Args:
        tensor: the wide tensor.
        rule: the optimizer's rule.
        decoupled: whether weight decay is decoupled. Default: the optimizer's.
        settings: settings of the narrow run; one that is 0 is right for every part.

    Returns:
        By setting, the largest value that a part needs divided by the smallest (dimensionless): `lr`, `eps`,
        `weight_decay`, the names of further settings, and `clip_weight`. Settings that are exact are absent.
    """
    decoupled = rule.decoupled if decoupled is None else decoupled
    parts = [_numbers(multipliers(rule, c, m, decoupled=decoupled)) for c, m in tensor.parts]
    if decoupled and rule.decay is None:
        for part in parts:
            del part["weight_decay"]
    found: dict[str, float] = {}
    for key in (key for key in parts[0] if settings.get(key) != 0):
        for values in zip(*(part[key] for part in parts), strict=True):
            ratio = max(values) / min(values)
            if not math.isclose(ratio, 1, rel_tol=1e-12):
                found[key] = max(ratio, found.get(key, 1.0))
    return found


def is_exact(tensor: ScaledTensor, rule: OptimizerRule) -> bool:
    """Tell whether one set of hyperparameters takes the planned step in every part of a tensor, without clipping."""
    return not spreads(tensor, rule).keys() - {CLIP_WEIGHT}


def _numbers(factors: Multipliers) -> dict[str, tuple[float, ...]]:
    further = {key: value if isinstance(value, tuple) else (value,) for key, value in factors.further}
    own = {"lr": factors.lr, "eps": factors.eps, "weight_decay": factors.weight_decay}
    return {**{key: (value,) for key, value in own.items()}, **further, CLIP_WEIGHT: (factors.clip,)}

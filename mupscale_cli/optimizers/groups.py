"""Parameter groups of a widened model: tensors with equal multipliers of hyperparameters. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mupscale_cli.errors import PlanError
from mupscale_cli.optimizers.identity import Kind
from mupscale_cli.optimizers.multipliers import CLIP_WEIGHT, Multipliers, ScaledTensor, tensor_multipliers
from mupscale_cli.optimizers.rules.rule import OptimizerRule
from mupscale_cli.optimizers.rules.table import optimizer_rule

_LARGEST = 2**63
# Keys of the group's factors, for training loops that write one learning rate or decay into all groups at every step.
LR_FACTOR, DECAY_FACTOR = "lr_factor", "weight_decay_factor"


def group_by_multipliers(by_name: Mapping[str, Multipliers]) -> list[tuple[Multipliers, list[str]]]:
    """Group names with equal multipliers, in the order of their first appearance."""
    groups: dict[Multipliers, list[str]] = {}
    for name, multipliers in by_name.items():
        groups.setdefault(multipliers, []).append(name)
    return list(groups.items())


def scale_settings(settings: Mapping[str, Any], multipliers: Multipliers) -> dict[str, Any]:
    """Multiply the settings that a group has, and add its weight for gradient clipping and its factors.

    Args:
        settings: the group's settings, such as `lr`, `eps` and `weight_decay`.
        multipliers: the multipliers.

    Raises:
        PlanError: a setting to multiply is not a finite number.
    """
    by_key = {
        "lr": multipliers.lr,
        "initial_lr": multipliers.lr,
        "max_lr": multipliers.lr,
        "min_lr": multipliers.lr,
        "max_lr_snapshot": multipliers.lr,  # timm's
        "eps": multipliers.eps,
        "weight_decay": multipliers.weight_decay,
        **dict(multipliers.further),
    }
    result = {key: _scaled(key, value, by_key[key]) if key in by_key else value for key, value in settings.items()}
    added = {CLIP_WEIGHT: multipliers.clip, LR_FACTOR: multipliers.lr, DECAY_FACTOR: multipliers.weight_decay}
    result |= {key: settings.get(key, 1.0) * factor for key, factor in added.items()}  # of a growth before this one
    return result


def _scaled(key: str, value: Any, factor: float | tuple[float, ...]) -> Any:
    """Multiply a setting, or the numbers of a pair by one factor or by a factor each."""
    if value is None:
        return None
    if isinstance(value, (list, tuple)):
        factors = factor if isinstance(factor, tuple) else (factor,) * len(value)
        if len(factors) != len(value):
            raise PlanError(f"the optimizer's `{key}` has {len(value)} numbers, expected {len(factors)}")
        return type(value)(_scaled(key, each, by) for each, by in zip(value, factors, strict=True))
    if isinstance(factor, tuple):
        raise PlanError(f"the optimizer's `{key}` is one number, expected {len(factor)}")
    if not isinstance(value, (int, float)):
        raise PlanError(f"the optimizer's `{key}` is {type(value).__name__}, expected a number")
    if not abs(value) < _LARGEST:
        raise PlanError(f"the optimizer's `{key}` is too large or not a number")
    return value * factor


def _in_model_order(names: Sequence[str], scaled: Callable[[str], Sequence[ScaledTensor]]) -> list[ScaledTensor]:
    """Return the wide tensors of parameters in the wide model's order, if the parameters are in the narrow model's."""
    tensors = {tensor.name: tensor for name in names for tensor in scaled(name)}
    if _as_in_modules(names) != list(names):
        return list(tensors.values())
    return [tensors[name] for name in _as_in_modules(tensors)]


def _as_in_modules(names: Iterable[str]) -> list[str]:
    """Return names in the order in which a model has them: module by module, and numbered modules by their number."""
    tree: dict[str, Any] = {}
    for name in names:
        branch = tree
        for part in name.split("."):
            branch = branch.setdefault(part, {})

    def walk(branch: Mapping[str, Any], prefix: str) -> Iterator[str]:
        numbered = iter(sorted((part for part in branch if part.isdecimal()), key=int))
        for part in branch:
            child = next(numbered) if part.isdecimal() else part
            yield from walk(branch[child], f"{prefix}{child}.") if branch[child] else (f"{prefix}{child}",)

    return list(walk(tree, ""))


@dataclass(frozen=True, slots=True)
class WideGroup:
    """A parameter group of the widened optimizer.

    Attributes:
        source: index of the narrow group that it comes from.
        settings: its settings, already multiplied.
        tensors: the wide parameters.
        multipliers: the multipliers of the settings.
        optimizer: the name of the optimizer that the settings belong to.
        decoupled: whether its weight decay is decoupled.
        narrow: the settings of the narrow group.
    """

    source: int
    settings: dict[str, Any]
    tensors: tuple[ScaledTensor, ...]
    multipliers: Multipliers
    optimizer: str
    decoupled: bool
    narrow: Mapping[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(tensor.name for tensor in self.tensors)

    @property
    def rule(self) -> OptimizerRule:
        """The rule of its optimizer, with its settings."""
        return optimizer_rule(self.optimizer).with_settings(self.narrow)


def widen_groups(
    groups: Sequence[tuple[Mapping[str, Any], Sequence[str]]],
    kinds: Sequence[Kind],
    scaled: Callable[[str], Sequence[ScaledTensor]],
) -> list[WideGroup]:
    """Split and scale parameter groups so that the wide model trains like the narrow one.

    Args:
        groups: settings and parameter names of each narrow group.
        kinds: the optimizer of each group.
        scaled: returns the widened tensors of a narrow parameter.

    Raises:
        PlanError: a setting to multiply is not a finite number.
    """
    result = []
    for index, ((settings, names), kind) in enumerate(zip(groups, kinds, strict=True)):
        tensors = {tensor.name: tensor for tensor in _in_model_order(names, scaled)}
        by_name = {
            name: tensor_multipliers(tensor, kind.rule, kind.decoupled, settings) for name, tensor in tensors.items()
        }
        for multipliers, members in group_by_multipliers(by_name):
            wide = scale_settings(settings, multipliers)
            about = (multipliers, kind.rule.name, kind.decoupled, settings)
            result.append(WideGroup(index, wide, tuple(tensors[name] for name in members), *about))
    return result

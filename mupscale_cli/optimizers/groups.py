"""Parameter groups of a widened model: tensors whose hyperparameters are multiplied alike. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mupscale_cli.errors import PlanError
from mupscale_cli.optimizers.multipliers import Multipliers, ScaledTensor, tensor_multipliers
from mupscale_cli.optimizers.rules import infer_optimizer

_LARGEST = 2**63
CLIP_WEIGHT = "clip_weight"  # the group's weight in the global norm of the gradient


def group_by_multipliers(found: Mapping[str, Multipliers]) -> list[tuple[Multipliers, list[str]]]:
    """Names with equal multipliers together, in the order in which each kind first appears."""
    groups: dict[Multipliers, list[str]] = {}
    for name, each in found.items():
        groups.setdefault(each, []).append(name)
    return list(groups.items())


def scale_settings(settings: Mapping[str, Any], found: Multipliers) -> dict[str, Any]:
    """A group's settings multiplied; those that it does not have are not invented.

    Args:
        settings: `lr`, `eps`, `weight_decay` and whatever else the group has.
        found: the multipliers.
    """
    by_key = {
        "lr": found.lr,
        "initial_lr": found.lr,
        "max_lr": found.lr,
        "min_lr": found.lr,
        "eps": found.eps,
        "weight_decay": found.weight_decay,
    }
    result = dict(settings)
    for key, value in settings.items():
        if key in by_key and value is not None:
            if not isinstance(value, (int, float)):
                raise PlanError(f"the optimizer's `{key}` is {type(value).__name__}, expected a number")
            if not abs(value) < _LARGEST:
                raise PlanError(f"the optimizer's `{key}` is too large or not a number")
            result[key] = value * by_key[key]
    result[CLIP_WEIGHT] = found.clip
    return result


@dataclass(frozen=True, slots=True)
class WideGroup:
    """A group of the widened optimizer, and which narrow group it came from."""

    source: int
    settings: dict[str, Any]
    names: tuple[str, ...]
    multipliers: Multipliers


def widen_groups(
    groups: Sequence[tuple[Mapping[str, Any], Sequence[str]]],
    keys: Mapping[str, Iterable[str]],
    scaled: Callable[[str], Sequence[ScaledTensor]],
) -> list[WideGroup]:
    """The groups with which the wide model trains as the narrow one did.

    Args:
        groups: settings and parameter names of each narrow group.
        keys: state keys of each parameter.
        scaled: what became of a narrow parameter.

    Raises:
        PlanError: it cannot be told which optimizer a group belongs to.
    """
    result = []
    for index, (settings, names) in enumerate(groups):
        used = {key for name in names for key in keys.get(name, ())}
        found = infer_optimizer(settings, used)
        if found is None:
            raise PlanError(
                f"the settings of the optimizer ({', '.join(sorted(map(str, settings)))}) are those of none "
                "that is known",
                hint="`--optimizer none` leaves the state behind",
            )
        tensors = {tensor.name: tensor for name in names for tensor in scaled(name)}
        by_name = {name: tensor_multipliers(tensor, *found, settings) for name, tensor in tensors.items()}
        for multipliers, members in group_by_multipliers(by_name):
            wide = scale_settings(settings, multipliers)
            result.append(WideGroup(index, wide, tuple(members), multipliers))
    return result

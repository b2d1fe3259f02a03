"""What the plan makes of the narrow weights, optimizer state and settings, and whether it is what is stored.

Training compares steps from the planned values in float64, before any rounding, so the rounding of stored values can
neither hide a wrong rule nor look like one. What is stored must be the planned values, rounded as `widen` rounds them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mupscale_cli.dtypes import DTYPES, TensorSpec, dtype_of
from mupscale_cli.engine.expand import effective_source
from mupscale_cli.engine.finite import NonFinite
from mupscale_cli.engine.streaming import expand_whole
from mupscale_cli.optimizers.content import scales_by_parameter
from mupscale_cli.optimizers.groups import widen_groups
from mupscale_cli.optimizers.identity import default_settings, identify_all
from mupscale_cli.optimizers.rules.rule import OptimizerRule
from mupscale_cli.optimizers.rules.table import optimizer_rule
from mupscale_cli.optimizers.state_plan import StateEntry, StatePlan, parameter_tensors, plan_state, rescale, wide_plain
from mupscale_cli.optimizers.tree import OptimizerTree
from mupscale_cli.plan import Plan, TensorPlan
from mupscale_cli.plan.names import ParameterNames
from mupscale_cli.verification.activations import name_in
from mupscale_cli.verification.result import CannotVerify
from mupscale_cli.verification.streamed import change

Group = tuple[Mapping[str, Any], Sequence[str]]  # settings and names of parameters
States = Mapping[str, Mapping[str, Any]]  # state entries by the name of their parameter
_SCALED = ("lr", "initial_lr", "eps", "weight_decay")  # settings that widening multiplies, and that a step uses

FRESH_START = "train both models from a fresh start with `--optimizer none`"


# Weights -------------------------------------------------------------------------------------------


def narrow_tensors(plan: Plan, narrow: nn.Module) -> Iterator[tuple[str, tuple[TensorPlan, str]]]:
    """Yield the name of each wide parameter, its plan and the name of its source in the narrow model.

    A model may also keep the names of its checkpoint.
    """
    names = dict(narrow.named_parameters(remove_duplicate=False))
    for tensor in (*plan.tensors, *plan.parameters):
        for rename in (plan.parameter_name, plan.wrapping.plain):
            source = name_in(narrow, rename(tensor.source.name), names)
            if source is not None:
                yield rename(tensor.target.name), (tensor, source)
                break


def planned_weight(tensor: TensorPlan, narrow: Tensor) -> Tensor:
    """Compute C R(W) (page `theory`) in float64, without rounding.

    Args:
        tensor: plan of the weight W.
        narrow: W, of the plan's source shape.

    Returns:
        The wide weight, of the plan's target shape.
    """
    exact = replace(rescale(tensor, lambda c, _: c), offset=tensor.offset)
    return _expand(exact, narrow, torch.float64)


def planned_change(tensor: TensorPlan, change: Tensor) -> Tensor:
    """Compute by how much C R(W) changes, in float64, if W changes by `change`: the same without an offset."""
    return _expand(rescale(tensor, lambda c, _: c), change, torch.float64)


def planned_gradient(tensor: TensorPlan, gradient: Tensor) -> Tensor:
    """Compute the gradient of C R(W), in float64, if that of W is `gradient`: each copy's is 1/(m c) of it."""
    return _expand(rescale(tensor, lambda c, m: 1 / (m * c)), gradient, torch.float64)


def planned_copies(tensor: TensorPlan, narrow: Tensor) -> Tensor:
    """Compute R(W), the copies without any scale; masks are taken as numbers and returned as masks."""
    return _expand(rescale(tensor, lambda _c, _m: 1.0), narrow, torch.float64) > 0


def restore_means(tensor: TensorPlan, narrow: Tensor, wide: Tensor) -> bool:
    """Replace the elements of a wide tensor that are rounded means of others by the unrounded means, in place.

    The means are those of the stored copies, which scaling may have rounded.

    Args:
        tensor: plan of the tensor, without noise.
        narrow: the narrow tensor; any type that holds its stored values exactly.
        wide: the wide tensor, in any such type. It is left alone if its means are not those that `widen` stores.

    Returns:
        Whether they are.
    """
    kind = DTYPES[tensor.target.dtype].torch
    values = narrow.detach().to("cpu", kind).contiguous()
    planned, stored = _expand(tensor, values, kind), wide.detach().to("cpu")
    is_mean = _means(tensor)
    if tuple(wide.shape) != tensor.target.shape or not torch.equal(planned.to(stored.dtype)[is_mean], stored[is_mean]):
        return False
    strips = tuple(dim.strips for dim in tensor.dims)
    kept = effective_source(values, strips, scale=tensor.scale, offset=tensor.offset)
    means = _expand(tensor, kept, torch.float64).to(stored.dtype)
    restored = torch.where(is_mean, means, stored)
    change(wide, lambda _: restored)
    return True


def _means(tensor: TensorPlan) -> Tensor:
    """Return a mask of the elements that are means of others, of the plan's target shape."""
    ones = torch.ones(tensor.source.shape, dtype=torch.float64)
    tensor = replace(tensor, scale=1.0, offset=0, fresh=0.0, init=None)
    zeros = tuple(dim.with_digits(lambda digit: replace(digit, fill="zero")) for dim in tensor.dims)
    with_means, without = (_expand(each, ones, torch.float64) for each in (tensor, replace(tensor, dims=zeros)))
    return with_means != without


def is_stored(tensor: TensorPlan, narrow: Tensor, wide: Tensor) -> bool:
    """Tell whether a stored wide tensor is, bit by bit, what `widen` makes of the narrow one in the stored type.

    Args:
        tensor: plan of the tensor.
        narrow: the narrow tensor; any type that holds its stored values exactly.
        wide: the wide tensor, in any such type.
    """
    if tuple(wide.shape) != tensor.target.shape:
        return False
    stored = _expand(tensor, narrow, DTYPES[tensor.target.dtype].torch)
    return torch.equal(stored, wide.detach().to("cpu", stored.dtype))


def _expand(tensor: TensorPlan, source: Tensor, dtype: torch.dtype) -> Tensor:
    """Expand a tensor in memory, in any type; NaNs and infinities are left to the comparison."""
    name = dtype_of(dtype).name
    tensor = replace(tensor, source=replace(tensor.source, dtype=name), target=replace(tensor.target, dtype=name))
    values = source.detach().to("cpu", dtype).contiguous()
    return expand_whole(tensor, values, NonFinite(is_allowed=True))


# State and settings --------------------------------------------------------------------------------


@dataclass(frozen=True)
class WideStart:
    """What the wide optimizer starts from.

    Attributes:
        groups: its parameter groups.
        states: its state in float64, unrounded; each tensor is computed whenever it is read.
        differences: stored settings and tensors that are not the planned ones, by name.
    """

    groups: Sequence[Group]
    states: States
    differences: tuple[str, ...]


def narrow_groups(state: OptimizerTree | None, decays: Mapping[str, bool]) -> list[Group]:
    """Return the parameter groups of the narrow optimizer: those of its state, else default ones.

    Args:
        state: state of the narrow optimizer, if there is one.
        decays: whether weight decay applies to each parameter by default.
    """
    if state is not None and state.groups:
        return list(state.groups)
    keys = {key for entries in (state.states.values() if state else ()) for key in entries}
    names = state.identified().names if state is not None and state.states else ("adamw",)
    if len(names) > 1:
        raise CannotVerify(f"the state has no groups and is that of {' and '.join(names)}", hint=FRESH_START)
    settings = default_settings(optimizer_rule(names[0]), keys)
    decayed, others = ([name for name in decays if decays[name] == is_decayed] for is_decayed in (True, False))
    return [(settings, decayed), ({**settings, "weight_decay": 0.0}, others)]


def is_finished(groups: Sequence[Group]) -> bool:
    """Tell whether a schedule has ended, so that every learning rate is 0 but groups have an `initial_lr`.

    Raises:
        CannotVerify: every learning rate is 0, and there is no initial one.
    """
    # Adafactor has no learning rate where its steps are relative.
    if any(settings.get("lr") or settings.get("lr", 0) is None for settings, _ in groups):
        return False
    if not any(settings.get("initial_lr") for settings, _ in groups):
        raise CannotVerify(
            "every learning rate in the optimizer state is 0 and no group has an `initial_lr`, so steps change nothing",
            hint=FRESH_START,
        )
    return True


def restart(groups: Sequence[Group]) -> list[Group]:
    """Return groups with the learning rate that their schedule started from."""
    return [({**settings, "lr": settings.get("initial_lr", 0.0)}, names) for settings, names in groups]


def plan_start(
    plan: Plan, groups: Sequence[Group], states: States, carried: OptimizerTree | None, named: Sequence[str] = ()
) -> WideStart:
    """Plan the settings and the state that the wide optimizer starts from, and compare the carried ones with them.

    The optimizer gets the carried numbers, so that a wrong learning rate, eps or decay shows in its steps, too.

    Args:
        plan: plan of the weights.
        groups: parameter groups of the narrow optimizer.
        states: state of the narrow optimizer.
        carried: the state next to the wide checkpoint; None if none is used.
        named: optimizers that the user says the state belongs to; empty to let it tell.

    Raises:
        PlanError: the state does not belong to these weights.
    """
    kinds = identify_all(groups, states, named)
    wide_groups = widen_groups(groups, kinds.groups, scales_by_parameter(plan))
    planned: list[Group] = [(group.settings, group.names) for group in wide_groups]
    scaled = {*_SCALED, *(key for kind in kinds.groups for key in kind.rule.scaled)}
    wide_states: dict[str, _PlannedEntries] = defaultdict(_PlannedEntries)
    differences: list[str] = []
    if carried is not None and carried.groups:
        expected = {name: settings for settings, names in planned for name in names}
        differences += _differing_settings(expected, carried.groups)
        planned = [
            ({**expected.get(names[0], {}), **{key: settings[key] for key in scaled if key in settings}}, names)
            for settings, names in carried.groups
            if names
        ]
    for entry, value in _wide_entries(plan, states, kinds.rules):
        wide_states[entry.parameter].add(entry, value)
        if carried is not None and not _is_carried(entry, value, carried.states):
            differences.append(f"{entry.key} of {entry.parameter}")
    for name, entries in (carried.states if carried is not None else {}).items():
        differences += (f"{key} of {name}" for key in entries if key not in wide_states.get(name, {}))
    return WideStart(planned, wide_states, tuple(differences))


class _PlannedEntries(Mapping[str, Any]):
    """The planned state of a wide parameter. It computes an entry when it is read, and keeps none in memory."""

    def __init__(self) -> None:
        self._planned: dict[str, tuple[StatePlan | _Scalar, Any]] = {}

    def add(self, entry: StatePlan | _Scalar, value: Any) -> None:
        """Add an entry that is made of a value in the narrow state."""
        self._planned[entry.key] = (entry, value)

    def __getitem__(self, key: str) -> Any:
        return _unrounded(*self._planned[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._planned)

    def __len__(self) -> int:
        return len(self._planned)


def _wide_entries(
    plan: Plan, states: States, rules: Mapping[str, OptimizerRule]
) -> Iterator[tuple[StatePlan | _Scalar, Any]]:
    """Yield the plan of every entry of the wide state, and the narrow value that it is made of."""
    named = {f"{name}.{key}": (name, key, value) for name, entries in states.items() for key, value in entries.items()}
    entries = [
        StateEntry(name, key, TensorSpec(spelled, dtype_of(value.dtype).name, tuple(value.shape)))
        for spelled, (name, key, value) in named.items()
        if isinstance(value, Tensor)
    ]
    for state in plan_state(plan, entries, rules):
        yield state, named[state.tensor.source.name][2]
    names = ParameterNames(plan)
    for name, key, value in named.values():
        for tensor in parameter_tensors(names, name) if not isinstance(value, Tensor) else ():
            yield _Scalar(names.wide_name(name, tensor), key), wide_plain(name, key, value, rules[name], tensor)


@dataclass(frozen=True, slots=True)
class _Scalar:
    """An entry of a wide parameter's state that is not a tensor."""

    parameter: str
    key: str


def _unrounded(entry: StatePlan | _Scalar, value: Any) -> Any:
    """Return a planned entry of the wide state; in float64 and without rounding, if it is scaled."""
    if isinstance(entry, _Scalar):
        return value
    if entry.kind.is_weight and value.shape == entry.tensor.source.shape and value.dim():
        return planned_weight(entry.tensor, value)
    if not value.is_floating_point():
        return value.clone() if entry.tensor.fill is None else torch.full_like(value, entry.tensor.fill)
    return _expand(entry.tensor, value, torch.float64)


def _is_carried(entry: StatePlan | _Scalar, value: Any, carried: States) -> bool:
    """Tell whether the carried state has an entry exactly as planned."""
    stored = carried.get(entry.parameter, {}).get(entry.key)
    if isinstance(entry, _Scalar):
        return bool(stored == value)
    return isinstance(stored, Tensor) and stored.dtype == value.dtype and is_stored(entry.tensor, value, stored)


def _differing_settings(expected: Mapping[str, Mapping[str, Any]], groups: Sequence[Group]) -> Iterator[str]:
    """Yield the name of each stored setting that is not the planned one; once for each group."""
    for settings, names in groups:
        planned = next((expected[name] for name in names if name in expected), {})
        for key in dict.fromkeys((*planned, *settings)):
            if planned.get(key) != settings.get(key):
                yield f"setting `{key}` of {names[0]}"

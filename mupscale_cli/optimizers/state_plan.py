"""Plan the widening of optimizer state, which is that of the weights with other coefficients. No torch, no data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from mupscale_cli.dtypes import DTYPES, TensorSpec
from mupscale_cli.errors import PlanError
from mupscale_cli.optimizers.rules.powers import Ratios
from mupscale_cli.optimizers.rules.rule import Entry, OptimizerRule
from mupscale_cli.optimizers.rules.table import COMMON_STATE, initial_value
from mupscale_cli.plan import Plan, TensorPlan
from mupscale_cli.plan.dims import DimMap, Region, Strip, keep_dims
from mupscale_cli.plan.names import ParameterNames

T = TypeVar("T")
Policy = Literal["copy", "reset", "reset-new"]
POLICIES: tuple[Policy, ...] = ("copy", "reset", "reset-new")


@dataclass(frozen=True, slots=True)
class StateEntry:
    """One tensor of an optimizer's state.

    Attributes:
        parameter: the name of its parameter in the optimizer's file.
        key: the key of the entry, for instance `exp_avg`.
        spec: the tensor's name in the file, data type and shape.
    """

    parameter: str
    key: str
    spec: TensorSpec


@dataclass(frozen=True, slots=True)
class StatePlan:
    """The plan of one entry of a wide parameter's state.

    Attributes:
        parameter: the name of the wide parameter, in the spelling of the source.
        key: the key of the entry.
        kind: what widening does to the entry.
        tensor: the plan of the tensor; source and target have their names in the files.
    """

    parameter: str
    key: str
    kind: Entry
    tensor: TensorPlan


def parameter_tensors(names: ParameterNames, parameter: str) -> Sequence[TensorPlan]:
    """Return the plans of the tensor of a parameter that the optimizer has state for.

    Raises:
        PlanError: the checkpoint has no such tensor.
    """
    if not (tensors := names.find(parameter)):
        raise PlanError(
            f"the optimizer has state for `{parameter}`, but the checkpoint has no such tensor",
            hint=names.suggest(parameter) or "the state belongs to another checkpoint; omit it with `--optimizer none`",
        )
    return tensors


def plan_state(
    plan: Plan, entries: Sequence[StateEntry], rules: Mapping[str, OptimizerRule], policy: Policy = "copy"
) -> tuple[StatePlan, ...]:
    """Plan the widening of an optimizer's state.

    Args:
        plan: the plan of the weights.
        entries: all tensors of the state.
        rules: the rule of each parameter's optimizer.
        policy: `copy` gives every copy of a unit its share of the moments; `reset-new` gives the share to the first
            copy and zeros to the others (SPARKLING, arXiv 2602.02472); `reset` drops the state, so the optimizer
            starts from the beginning. New blocks always start from the beginning.

    Raises:
        PlanError: an entry has an unknown parameter, an unknown key, or a shape that is not its parameter's.
    """
    if policy == "reset":
        return ()
    names = ParameterNames(plan)
    return tuple(state for entry in entries for state in _plan_entry(entry, rules[entry.parameter], names, policy))


def entry_kind(parameter: str, key: str, rule: OptimizerRule) -> Entry:
    """Return what widening does to an entry of a parameter's state.

    Raises:
        PlanError: the optimizer has no such entry.
    """
    kind = COMMON_STATE.get(key) or rule.state.get(key)
    if kind is None:
        raise PlanError(
            f"the optimizer state of `{parameter}` has an entry `{key}` that is unknown in {rule.title}",
            hint="omit the state with `--optimizer none`, or reset it with `--optimizer-policy reset`",
        )
    return kind


def wide_plain(parameter: str, key: str, value: Any, rule: OptimizerRule, tensor: TensorPlan) -> Any:
    """Return an entry of a wide parameter's state that is not a tensor: a number is scaled, a word stays.

    Raises:
        PlanError: the entry is nested, or the optimizer has no such number.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if not isinstance(value, (int, float)):
        raise PlanError(
            f"the optimizer state of `{parameter}` has an entry `{key}` that contains further values",
            hint="omit the state with `--optimizer none`, or reset it with `--optimizer-policy reset`",
        )
    kind = entry_kind(parameter, key, rule)
    if tensor.is_new:
        return type(value)(initial_value(key))
    return value if kind.powers.is_one else value * kind.powers(*tensor.parts[0])


def _plan_entry(entry: StateEntry, rule: OptimizerRule, names: ParameterNames, policy: Policy) -> Iterator[StatePlan]:
    tensors = parameter_tensors(names, entry.parameter)
    kind = entry_kind(entry.parameter, entry.key, rule)
    if entry.spec.num_elements != 1 and not _fits(entry.spec.shape, tensors[0].source.shape, kind):
        raise PlanError(
            f"the optimizer's `{entry.key}` of `{entry.parameter}` has the shape {entry.spec.shape}, "
            f"but the parameter has {tensors[0].source.shape}",
            hint="the state belongs to another checkpoint, or is flattened",
        )
    if DTYPES[entry.spec.dtype].kind != "float" and not kind.powers.is_one:
        raise PlanError(
            f"the optimizer's `{entry.key}` of `{entry.parameter}` is {entry.spec.dtype}, which cannot be scaled",
            hint="of 8-bit states, that of bitsandbytes' AdamW can be widened; widen without this one: "
            "`--optimizer none`",
        )
    copies = [tensor for tensor in tensors if not tensor.is_new]
    for tensor in tensors:
        index = 0 if tensor.is_new else copies.index(tensor)
        parameter = names.wide_name(entry.parameter, tensor)
        name = entry.spec.name.replace(entry.parameter, parameter)
        planned = _state_tensor(tensor, entry.key, entry.spec, name, kind, policy, index)
        yield StatePlan(parameter, entry.key, kind, planned)


def _fits(shape: Sequence[int], parameter: Sequence[int], kind: Entry) -> bool:
    """Tell whether an entry has its parameter's shape, apart from dimensions that it has averaged over."""
    full = _kept(parameter, kind)
    return len(shape) == len(full) and all(size in (1, whole) for size, whole in zip(shape, full, strict=True))


def _kept(values: Sequence[T], kind: Entry) -> tuple[T, ...]:
    """Return what belongs to the dimensions of the parameter that an entry has."""
    return tuple(values) if kind.dims is None else tuple(values[dim] for dim in kind.dims(len(values)))


def _state_tensor(
    tensor: TensorPlan, key: str, spec: TensorSpec, name: str, kind: Entry, policy: Policy, index: int
) -> TensorPlan:
    fill = initial_value(key) if tensor.is_new else None
    if kind.is_weight and spec.shape == tensor.source.shape:
        return replace(tensor, source=spec, target=TensorSpec(name, spec.dtype, tensor.target.shape))
    if spec.shape != tensor.source.shape or kind.dims is not None:
        return _smaller(tensor, spec, name, kind, fill)
    rescaled = rescale(tensor, kind.powers)
    if policy == "reset-new":
        dims = tuple(dim.with_digits(lambda digit: replace(digit, contracted=True)) for dim in rescaled.dims)
        rescaled = replace(rescaled, dims=dims, first_only=True, name_pieces=tensor.name_copies, piece=index)
    return replace(rescaled, source=spec, target=TensorSpec(name, spec.dtype, tensor.target.shape), fill=fill)


def _smaller(tensor: TensorPlan, spec: TensorSpec, name: str, kind: Entry, fill: float | None) -> TensorPlan:
    """Plan an entry that has averaged over dimensions of its parameter, or is a single number such as `step`.

    Raises:
        PlanError: parts of the parameter need different factors, which an average cannot have.
    """
    dims = keep_dims(spec.shape)
    ratios = Ratios.of(tensor.source.shape, tensor.target.shape)
    factors = {kind.powers(c, m, ratios) for c, m in tensor.parts}
    if spec.num_elements != 1:
        own = _kept(range(len(tensor.dims)), kind)
        averaged = [dim for number, dim in enumerate(tensor.dims) if number not in own]
        averaged += [tensor.dims[number] for number, size in zip(own, spec.shape, strict=True) if size == 1]
        factors = {factor * math.prod(map(_share_of_copies, averaged)) for factor in factors}
        whole = rescale(tensor, lambda _c, _m: 1.0).dims
        dims = tuple(kept if kept.size == 1 else whole[number] for number, kept in zip(own, dims, strict=True))
    if len(factors) > 1 or (factors != {1.0} and not all(map(_is_even, tensor.dims))):
        raise PlanError(
            f"parts of `{tensor.source.name}` need different factors, so `{spec.name}`, an average, cannot be widened",
            hint="reset the state with `--optimizer-policy reset`",
        )
    (factor,) = factors
    target = TensorSpec(name, spec.dtype, tuple(dim.wide_size for dim in dims))
    return TensorPlan(spec, target, tensor.rule, tensor.layout, dims, scale=factor, fill=fill)


def _is_even(dim: DimMap) -> bool:
    return all(digit.units.is_even for strip in dim.strips for digit in strip.digits)


def _share_of_copies(dim: DimMap) -> float:
    """Return which part of a dimension copies are; fresh units are 0 in what is averaged."""
    return (
        sum(strip.multiplicity * math.prod(d.units.size for d in strip.digits) for strip in dim.strips) / dim.wide_size
    )


def rescale(tensor: TensorPlan, scale: Callable[[float, float], float]) -> TensorPlan:
    """Return a plan for f(c, m) R(W): the copies of a weight's plan at another scale, rounded instead of split.

    Args:
        tensor: the plan of a weight.
        scale: f, a product of powers of c and m, so it can be applied to each dimension's share of them.
    """
    # If some units are copied more often than others, f applies to the number of copies of each.
    summed_power, kept_power = math.log2(scale(0.5, 2)), math.log2(scale(1, 2))

    def strip_scale(strip: Strip) -> Strip:
        regular = replace(strip, digits=tuple(digit for digit in strip.digits if digit.units.is_regular))
        return replace(
            strip,
            scale=scale(strip.scale / regular.pieces, regular.multiplicity),
            digits=tuple(
                replace(
                    digit,
                    contracted=False,
                    power=0.0 if digit.units.is_regular else summed_power if digit.contracted else kept_power,
                    fill="zero",
                )
                for digit in strip.digits
            ),
        )

    def region_scale(region: Region) -> Region:
        return replace(region, strips=tuple(map(strip_scale, region.strips)))

    dims = tuple(replace(dim, regions=tuple(map(region_scale, dim.regions))) for dim in tensor.dims)
    whole = scale(tensor.scale / tensor.name_pieces, tensor.name_copies)
    return replace(
        tensor, dims=dims, scale=whole, offset=0, piece=0, name_pieces=1, noise=None, shrink=1.0, fresh=0.0, init=None
    )

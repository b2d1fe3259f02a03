"""Plan the widening of optimizer state, which is that of the weights with other coefficients. No torch, no data."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mupscale_cli.dtypes import DTYPES, TensorSpec
from mupscale_cli.errors import PlanError
from mupscale_cli.optimizers.multipliers import state_scale
from mupscale_cli.optimizers.rules import StateKind, initial_value, state_kind
from mupscale_cli.plan import Plan, TensorPlan
from mupscale_cli.plan.dims import Region, Strip, keep_dims
from mupscale_cli.plan.names import ParameterNames

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
        kind: how the entry depends on the gradient.
        tensor: the plan of the tensor; source and target have their names in the files.
    """

    parameter: str
    key: str
    kind: StateKind
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


def plan_state(plan: Plan, entries: Sequence[StateEntry], policy: Policy = "copy") -> tuple[StatePlan, ...]:
    """Plan the widening of an optimizer's state.

    Args:
        plan: the plan of the weights.
        entries: all tensors of the state.
        policy: `copy` gives every copy of a unit its share of the moments; `reset-new` gives the share to the first
            copy and zeros to the others (SPARKLING, arXiv 2602.02472); `reset` drops the state, so the optimizer
            starts from the beginning. New blocks always start from the beginning.

    Raises:
        PlanError: an entry has an unknown parameter, an unknown key, or a shape that is not its parameter's.
    """
    if policy == "reset":
        return ()
    names = ParameterNames(plan)
    keys: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        keys[entry.parameter].add(entry.key)
    return tuple(state for entry in entries for state in _plan_entry(entry, keys[entry.parameter], names, policy))


def _plan_entry(entry: StateEntry, keys: set[str], names: ParameterNames, policy: Policy) -> Iterator[StatePlan]:
    tensors = parameter_tensors(names, entry.parameter)
    kind = state_kind(entry.key, keys)
    if kind is None:
        raise PlanError(
            f"the optimizer state of `{entry.parameter}` has an unknown entry `{entry.key}`",
            hint="omit the state with `--optimizer none`, or reset it with `--optimizer-policy reset`",
        )
    if entry.spec.num_elements != 1 and entry.spec.shape != tensors[0].source.shape:
        raise PlanError(
            f"the optimizer's `{entry.key}` of `{entry.parameter}` has the shape {entry.spec.shape}, "
            f"but the parameter has {tensors[0].source.shape}",
            hint="the state belongs to another checkpoint, or is factored or flattened",
        )
    if DTYPES[entry.spec.dtype].kind != "float" and kind != "same":
        raise PlanError(
            f"the optimizer's `{entry.key}` of `{entry.parameter}` is {entry.spec.dtype}, which cannot be scaled",
            hint="an 8-bit state keeps its scales in separate tensors and cannot be widened; widen without it: "
            "`--optimizer none`",
        )
    copies = [tensor for tensor in tensors if not tensor.is_new]
    for tensor in tensors:
        index = 0 if tensor.is_new else copies.index(tensor)
        parameter = names.wide_name(entry.parameter, tensor)
        name = entry.spec.name.replace(entry.parameter, parameter)
        planned = _state_tensor(tensor, entry.key, entry.spec, name, kind, policy, index)
        yield StatePlan(parameter, entry.key, kind, planned)


def _state_tensor(
    tensor: TensorPlan, key: str, spec: TensorSpec, name: str, kind: StateKind, policy: Policy, index: int
) -> TensorPlan:
    fill = initial_value(key) if tensor.is_new else None
    if spec.shape != tensor.source.shape:  # a scalar such as `step`
        return TensorPlan(spec, replace(spec, name=name), tensor.rule, "keep", keep_dims(spec.shape), fill=fill)
    target = TensorSpec(name, spec.dtype, tensor.target.shape)
    if kind == "weight":
        return replace(tensor, source=spec, target=target)
    rescaled = rescale(tensor, lambda c, m: state_scale(kind, c, m))
    if policy == "reset-new":
        dims = tuple(dim.with_digits(lambda digit: replace(digit, contracted=True)) for dim in rescaled.dims)
        rescaled = replace(rescaled, dims=dims, first_only=True, name_pieces=tensor.name_copies, piece=index)
    return replace(rescaled, source=spec, target=target, fill=fill)


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

"""Grow a model and its optimizer in memory, without leaving the training process."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from mupscale_cli.engine.finite import NonFinite
from mupscale_cli.errors import PlanError
from mupscale_cli.optimizers.caveats import warn_inexact
from mupscale_cli.optimizers.live import (
    LiveState,
    MakeOptimizer,
    expand_live,
    is_sharded,
    plan_live_state,
    widen_live_scheduler,
)
from mupscale_cli.optimizers.scheduler import regroup_scheduler
from mupscale_cli.plan import Plan, TensorPlan
from mupscale_cli.plan.names import ParameterNames
from mupscale_cli.tasks.growing.live import (
    Build,
    LiveModel,
    become,
    build_blank,
    carry_modes,
    live_tensors,
    lost_hooks,
    read_live,
    spec_of,
)
from mupscale_cli.tasks.options import GrowthOptions, WidenOptions, called_with
from mupscale_cli.tasks.planning import plan_source
from mupscale_cli.tasks.source import Source, described
from mupscale_cli.text import listed, suggest

Optimizers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None
_MAX_NAMED = 3
_log = logging.getLogger(__name__)  # `-v` shows it


@dataclass(frozen=True)
class Grown:
    """The result of `grow`.

    Attributes:
        model: the wide model.
        optimizer: the wide optimizer; a list if several were given, None if none was.
        scheduler: the scheduler of the wide optimizer; a list if several were given, None if none was.
        plan: the executed plan.
        notes: what the wide model does not have, and has to be done again.
    """

    model: nn.Module
    optimizer: Any
    scheduler: Any
    plan: Plan
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Trained:
    """The second argument of `grow`; as a base class, it comes before those of the growth.

    Attributes:
        optimizer: the optimizer that trains the model, or several of them.
    """

    optimizer: Optimizers = None


@dataclass(frozen=True)
class GrowCall(GrowthOptions, _Trained):
    """The arguments of `grow`: what to grow, and how.

    Attributes:
        scheduler: the learning rate scheduler of the optimizer, or several of them.
        config: the model's config as plain values. Default: that of its attribute `config`.
        build: makes a model from a config as plain values; without a config, from `{"shapes": ...}`. Default: the
            model's class, or the library that its config is for.
        make_optimizer: makes an optimizer from parameter groups. Default: the class of the narrow one.
        in_place: turn the given model, optimizer and scheduler themselves into the wide ones, for a trainer that holds
            them. Modules inside the model are new ones.
    """

    _: KW_ONLY
    scheduler: Any = None
    config: Mapping[str, Any] | None = None
    build: Build | None = None
    make_optimizer: MakeOptimizer | None = None
    in_place: bool = False

    @property
    def as_widening(self) -> WidenOptions:
        """The growth as options of widening a checkpoint."""
        return WidenOptions(**{field.name: getattr(self, field.name) for field in fields(GrowthOptions)})


@called_with(GrowCall)
def grow(model: nn.Module, call: GrowCall) -> Grown:
    """Grow a model and its optimizer in memory: the same plan, and the same bytes, as widening their checkpoint.

    The given model and optimizer stay as they are (except `in_place`), and the result shares no data with them, so
    memory must hold both. Call it between two steps; gradients are not carried.

    Args:
        model: a model of transformers, or a module of your own with `recipe`. Wrappers for compilation and data
            parallelism are taken off.
        call: the fields of `GrowthOptions` and `GrowCall`, as separate arguments.

    Raises:
        MupscaleError: the user can fix the problem; nothing has changed.

    Example:
        >>> grown = grow(model, optimizer, factor=2, noise=0.1)  # doctest: +SKIP
        >>> model, optimizer = grown.model, grown.optimizer  # doctest: +SKIP
    """
    live = read_live(model, call.config, call.build)
    if call.in_place and (holder := next((each for each in live.unwrapped if "DataParallel" in each), None)):
        raise PlanError(f"{holder} holds the narrow parameters, so they cannot grow in place", hint="omit `in_place`")
    optimizers = [_bare(each, "optimizer") for each in _several(call.optimizer)]
    schedulers = [_bare(each, "scheduler") for each in _several(call.scheduler)]
    bound = [_position(scheduler, optimizers) for scheduler in schedulers]
    source = described(Source(live.as_checkpoint()), call.recipe, call.settings)
    plan = plan_source(source, call.as_widening)
    placed = tuple(_place(live, plan))
    names = {id(tensor): name for name, tensor in live.tensors.items()}
    states = [plan_live_state(optimizer, names, plan, call.policy) for optimizer in optimizers]
    wide = build_blank(live, plan)
    wide_names = _wide_names(live, plan, wide, placed)
    nonfinite = NonFinite(is_allowed=call.allow_nonfinite)
    _fill(live, wide, placed, wide_names, nonfinite)
    carry_modes(live.module, wide, ((each.narrow, wide_names[each.tensor.target.name]) for each in placed))
    parameters = dict(wide.named_parameters(remove_duplicate=False))

    def make(state: LiveState) -> torch.optim.Optimizer:
        return state.make(lambda name: parameters[_in_model(name, plan, parameters)], nonfinite, call.make_optimizer)

    grown = [make(state) for state in states]
    rates = [[(group.source, group.multipliers.lr) for group in state.wide.groups] for state in states]
    new_schedulers = [
        widen_live_scheduler(scheduler, grown[index], rates[index])
        for scheduler, index in zip(schedulers, bound, strict=True)
    ]
    prepared = [*optimizers, *schedulers] != [*_several(call.optimizer), *_several(call.scheduler)]
    unwrapped = (*live.unwrapped, *(["accelerate's wrapper of optimizer or scheduler"] if prepared else []))
    warn_inexact((group.rule, group.tensors) for state in states for group in state.wide.groups)
    notes = _notes(live.module, wide, unwrapped, in_place=call.in_place)
    for note in notes:
        _log.warning("%s", note)
    if not call.in_place:
        return Grown(wide, _as_given(call.optimizer, grown), _as_given(call.scheduler, new_schedulers), plan, notes)
    become(live.module, wide)
    for optimizer, result in zip(optimizers, grown, strict=True):
        optimizer.param_groups[:] = result.param_groups
        optimizer.state = result.state
    for scheduler, index in zip(schedulers, bound, strict=True):
        regroup_scheduler(scheduler, rates[index])
    return Grown(model, call.optimizer, call.scheduler, plan, notes)


@dataclass(frozen=True)
class _Placed:
    """A tensor of the narrow model, and the plan of one that it becomes; its target is named as in the wide model."""

    narrow: str
    tensor: TensorPlan


def _place(live: LiveModel, plan: Plan) -> Iterator[_Placed]:
    """Yield what becomes of every tensor of a model; those that the recipe omits are computed by the model."""
    names = ParameterNames(plan)
    merged = {tensor.source.name for tensor in plan.parameters}
    for name, tensor in live.tensors.items():
        for found in names.find(name):
            spec = spec_of(name, tensor)
            if spec.shape != found.source.shape:
                raise PlanError(f"`{name}` of {live.name} has the shape {spec.shape}, expected {found.source.shape}")
            if found.source.name in merged and (plan.perturbation is not None or not plan.method.is_copying):
                raise PlanError(
                    f"`{name}` is saved in another form than it has in memory, for which the noise would differ",
                    hint="grow without noise, or save the model and use `mupscale widen`",
                )
            target = replace(found.target, name=names.wide_name(name, found), dtype=spec.dtype)
            yield _Placed(name, replace(found, source=spec, target=target))


def _wide_names(live: LiveModel, plan: Plan, wide: nn.Module, placed: Sequence[_Placed]) -> dict[str, str]:
    """Return the wide model's name for the target of every plan, after checking that model and plan agree.

    Raises:
        PlanError: the wide model has other tensors than the plan, or other shapes.
    """
    by_name = wide.state_dict(keep_vars=True)
    hint = "`build` must return the model of the config that it is given, and share the same parameters"
    names = {}
    for each in placed:
        target = each.tensor.target
        name = names[target.name] = _in_model(target.name, plan, by_name)
        if name not in by_name:
            raise PlanError(f"the wide {live.name} has no `{name}`", hint=suggest(name, by_name) or hint)
        if (shape := tuple(by_name[name].shape)) != target.shape:
            raise PlanError(
                f"`{name}` of the wide {live.name} has the shape {shape}, expected {target.shape}", hint=hint
            )
        if is_sharded(live.tensors[each.narrow]) != is_sharded(by_name[name]):
            raise PlanError(
                f"`{each.narrow}` is sharded, unlike `{name}` of the wide {live.name}",
                hint="pass `build=`, a function that makes the model from its config and shards it",
            )
    planned = {id(by_name[name]) for name in names.values()}
    for name, tensor in live_tensors(wide).items():
        if tensor.is_meta and id(tensor) not in planned:
            raise PlanError(f"the wide {live.name} has a parameter `{name}` that is not in the plan", hint=hint)
    return names


def _in_model(name: str, plan: Plan, known: Mapping[str, Any]) -> str:
    """Return a name as the wide model has it, which is built without what wraps parts of the narrow one."""
    return name if name in known else plan.wrapping.plain(name)


def _fill(
    live: LiveModel, wide: nn.Module, placed: Sequence[_Placed], names: Mapping[str, str], nonfinite: NonFinite
) -> None:
    """Give the wide model its tensors, each of the data type and on the device of the one that it comes from."""
    spellings: dict[int, list[str]] = {}
    state = wide.state_dict(keep_vars=True)
    for name, tensor in state.items():
        spellings.setdefault(id(tensor), []).append(name)
    filled: dict[str, Tensor] = {}
    for each in placed:
        source, blank = live.tensors[each.narrow], state[names[each.tensor.target.name]]
        tensor = expand_live(each.tensor, source, nonfinite, blank)
        if isinstance(blank, nn.Parameter):
            blank.requires_grad_(source.requires_grad)  # as the assigned one will
            tensor = nn.Parameter(tensor, source.requires_grad)
            vars(tensor).update(vars(blank))
        filled |= dict.fromkeys(spellings[id(blank)], tensor)
    wide.load_state_dict(filled, strict=False, assign=True)
    narrow_buffers = dict(live.module.named_buffers())
    for name, buffer in wide.named_buffers():
        if name in filled:
            continue
        like = narrow_buffers.get(name)
        owner, _, own_name = name.rpartition(".")
        kept = buffer.to(live.device if like is None else like.device)
        if like is not None and like.is_floating_point():
            kept = kept.to(like.dtype)
        setattr(wide.get_submodule(owner), own_name, kept)


def _notes(narrow: nn.Module, wide: nn.Module, unwrapped: Sequence[str], *, in_place: bool) -> tuple[str, ...]:
    """Say what the wide model does not have, and has to be done again."""
    notes = [] if in_place else [f"{wrapper} was taken off; wrap the wide one again" for wrapper in unwrapped]
    if hooks := [name for name in lost_hooks(narrow, wide) if name or not in_place]:
        names = listed([name or "the model" for name in hooks], _MAX_NAMED)
        notes.append(f"hooks of {names} are not carried; register them again")
    return tuple(notes)


def _several(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def _bare(value: Any, attribute: str) -> Any:
    """Return an optimizer or a scheduler without what accelerate wraps around it."""
    return getattr(value, attribute) if type(value).__module__.startswith("accelerate.") else value


def _as_given(given: Any, results: list[Any]) -> Any:
    return None if given is None else results if isinstance(given, (list, tuple)) else results[0]


def _position(scheduler: Any, optimizers: Sequence[torch.optim.Optimizer]) -> int:
    """Return the position of the optimizer that a scheduler drives."""
    driven = _bare(getattr(scheduler, "optimizer", None), "optimizer")
    found = next((i for i, each in enumerate(optimizers) if each is driven), None)
    if found is None:
        raise PlanError(
            f"the {type(scheduler).__name__} drives another optimizer than those that are grown",
            hint="pass the optimizer that it was made for",
        )
    return found

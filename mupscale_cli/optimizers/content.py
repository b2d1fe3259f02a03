"""Widen everything that a training checkpoint holds: optimizer state, weights, and values to copy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from mupscale_cli.checkpoints.containers.nested import walk
from mupscale_cli.checkpoints.containers.places import Place, find_place, place_name, value_at
from mupscale_cli.checkpoints.containers.torch_file import blank_tensor
from mupscale_cli.dtypes import TensorSpec
from mupscale_cli.errors import CheckpointError, PlanError
from mupscale_cli.optimizers.groups import WideGroup, widen_groups
from mupscale_cli.optimizers.multipliers import ScaledTensor
from mupscale_cli.optimizers.scheduler import is_schedule, regrouped
from mupscale_cli.optimizers.state_plan import Policy, StateEntry, parameter_tensors, plan_state, wide_plain
from mupscale_cli.optimizers.tree import (
    Groups,
    OptimizerTree,
    is_optimizer,
    joined,
    optimizers_at,
    parse_tree,
    render_tree,
)
from mupscale_cli.plan import Plan, TensorPlan, make_plan
from mupscale_cli.plan.dims import keep_dims
from mupscale_cli.plan.names import ParameterNames

_USUAL_KEYS = ("optimizer", "optimizer_state_dict", "optimizer_state", "optim", "optimizers", "optimizer_states")
NamesOf = Callable[[Groups, Mapping[Any, Any]], Mapping[int, str]]


@dataclass(frozen=True)
class OwnContent:
    """What of a training checkpoint's content belongs to the checkpoint that is widened.

    Attributes:
        weights: the place of each weight, by its name in the plan.
        replaced: the new value of each place that is neither weights nor state, such as the sizes of the model.
        dropped: the places that are left out.
        stored: where the bytes of each tensor are, by its id(), so that tensors which share them still do.
    """

    weights: Mapping[str, Place] = field(default_factory=dict)
    replaced: Mapping[Place, Any] = field(default_factory=dict)
    dropped: frozenset[Place] = frozenset()
    stored: Mapping[int, Any] = field(default_factory=dict)


NOTHING = OwnContent()


@dataclass(frozen=True)
class WideContent:
    """The content of a widened training checkpoint.

    Attributes:
        content: nested mappings and sequences with blank tensors.
        tensors: the plans of the blank tensors; each target has its place as its name.
        groups: the optimizer's parameter groups.
        copied: the entries that are copied unchanged.
        kinds: the names of the optimizers that the state belongs to.
    """

    content: Any
    tensors: tuple[TensorPlan, ...]
    groups: tuple[WideGroup, ...]
    copied: tuple[str, ...]
    kinds: tuple[str, ...]


def scales_by_parameter(plan: Plan) -> Callable[[str], list[ScaledTensor]]:
    """Return a function from an optimizer's parameter name to the widened tensors of that parameter.

    A parameter that the checkpoint may lack, and lacks, has none: it is frozen and leaves its group. State for it is
    refused elsewhere (`plan_state`).
    """
    names = ParameterNames(plan)

    def find(parameter: str) -> list[ScaledTensor]:
        tensors = names.find(parameter) if names.may_lack(parameter) else parameter_tensors(names, parameter)
        return [ScaledTensor.of(tensor, names.wide_name(parameter, tensor)) for tensor in tensors]

    return find


def locate_optimizer(content: Any, key: str | None, where: str) -> Place:
    """Locate the optimizer's state dict in a training checkpoint.

    Args:
        content: the checkpoint's content.
        key: dotted keys that lead to it, if the user gives them.
        where: the file, for messages.

    Raises:
        CheckpointError: the checkpoint has no optimizer state there.
    """
    held = ", ".join(map(str, list(content)[:8])) if isinstance(content, Mapping) else type(content).__name__
    if key is not None:
        place = find_place(content, key)
        if not optimizers_at(content, place):
            raise CheckpointError(f"`{where}` has no optimizer state at `{key}`; it holds {held}")
        return place
    if is_optimizer(content) or (isinstance(content, list) and optimizers_at(content, ())):
        return ()
    for usual in _USUAL_KEYS:
        if isinstance(content, Mapping) and optimizers_at(content, (usual,)):
            return (usual,)
    unusual = optimizers_at(content, ())
    if len(unusual) > 1:  # each under a key of its own, such as its name
        return ()
    raise CheckpointError(
        f"`{where}` has no optimizer state at the usual keys; it holds {held}",
        hint=f"name its key with `--key {unusual[0][0] if unusual else 'NAME'}`",
    )


def widen_content(
    content: Any,
    specs: Mapping[int, TensorSpec],
    root: Place | None,
    plan: Plan,
    policy: Policy,
    config: Mapping[str, Any] | None,
    names_of: NamesOf,
    named: Sequence[str] = (),
    own: OwnContent = NOTHING,
) -> WideContent:
    """Plan the widened form of a training checkpoint.

    Args:
        content: nested mappings and sequences with tensors, which need no data.
        specs: the spec of each tensor, by its id().
        root: the place of the optimizer's state dict; None if it is not widened.
        plan: the plan of the weights.
        policy: how to widen the state.
        config: config.json of the narrow weights.
        names_of: names the parameters of an optimizer that numbers them.
        named: optimizers that the user says the state belongs to; empty to let it tell.
        own: what of the content belongs to the checkpoint itself.

    Raises:
        MupscaleError: state and weights do not belong together.
    """
    roots = () if root is None else optimizers_at(content, root) or (root,)
    trees = [parse_tree(value_at(content, place), names_of) for place in roots]
    tree = joined(trees) if trees else OptimizerTree("names", {}, [], {})
    kinds = replace(tree, kinds=tuple(named)).identified()
    rules = kinds.rules
    plans_by_id: dict[int, TensorPlan] = {}
    entries = [
        StateEntry(name, key, specs[id(value)])
        for name, state in tree.states.items()
        for key, value in state.items()
        if isinstance(value, torch.Tensor)
    ]
    states: dict[str, dict[str, Any]] = {}
    names = ParameterNames(plan)
    for state in plan_state(plan, entries, rules, policy):
        tensor = blank_tensor(state.tensor.target)
        plans_by_id[id(tensor)] = state.tensor
        states.setdefault(state.parameter, {})[state.key] = tensor
    if policy != "reset":
        for name, state_values in tree.states.items():
            plain = {key: value for key, value in state_values.items() if not isinstance(value, torch.Tensor)}
            for tensor_plan in parameter_tensors(names, name) if plain else ():
                values = {k: wide_plain(name, k, v, rules[name], tensor_plan) for k, v in plain.items()}
                states.setdefault(names.wide_name(name, tensor_plan), {}).update(values)
    groups = widen_groups(tree.groups, kinds.groups, scales_by_parameter(plan))
    own_groups = _groups_of(trees, groups)
    rendered = {
        place: render_tree(each, states, wide) for place, each, wide in zip(roots, trees, own_groups, strict=True)
    }
    replaced = {**own.replaced, **rendered}
    weights = _WeightFinder(names, plan, config, specs, plans_by_id, own.stored)
    walker = _Walker(replaced, own, tuple(zip(trees, own_groups, strict=True)), weights, [])
    wide, copied = walker.widen(content, ()), walker.copied
    tensors = tuple(_plan_at(place, tensor, plans_by_id, specs) for place, tensor in walk(wide))
    # `wide` keeps the blank tensors of `plans_by_id` alive, so their ids are unique.
    return WideContent(wide, tensors, tuple(groups), tuple(copied), kinds.names)


def _groups_of(trees: Sequence[OptimizerTree], groups: Sequence[WideGroup]) -> list[list[WideGroup]]:
    """Return the wide groups of each optimizer, with the numbers of its own narrow ones."""
    found, first = [], 0
    for tree in trees:
        own = range(first, first + len(tree.groups))
        found.append([replace(group, source=group.source - first) for group in groups if group.source in own])
        first = own.stop
    return found


def _plan_at(
    place: Place, tensor: torch.Tensor, plans_by_id: Mapping[int, TensorPlan], specs: Mapping[int, TensorSpec]
) -> TensorPlan:
    name = place_name(place)
    if id(tensor) in plans_by_id:
        plan = plans_by_id[id(tensor)]
        return replace(plan, target=replace(plan.target, name=name))
    spec = specs[id(tensor)]
    return TensorPlan(spec, replace(spec, name=name), "", "keep", keep_dims(spec.shape))


@dataclass(frozen=True)
class _WeightFinder:
    """Recognizes weights in a training checkpoint, and plans them like a separate checkpoint."""

    names: ParameterNames
    plan: Plan
    config: Mapping[str, Any] | None
    specs: Mapping[int, TensorSpec]
    plans_by_id: dict[int, TensorPlan]
    places: Mapping[int, Any]
    shared: dict[Any, torch.Tensor] = field(default_factory=dict)

    def widen(self, mapping: Mapping[Any, Any]) -> dict[Any, Any] | None:
        """Widen a mapping from names of weights to tensors; return None for any other mapping.

        Raises:
            MupscaleError: a tensor of the mapping is unknown to the recipe or has an unexpected shape.
        """
        if not all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in mapping.items()):
            return None
        if not any(self.names.knows(name) for name in mapping):
            return None
        merged_parameters = {tensor.source.name: tensor for tensor in self.plan.parameters}
        original_names, result = {}, {}
        for name in mapping:
            plain = self.plan.wrapping.plain(name)
            if plain in merged_parameters:
                parameter = self._plan_merged(merged_parameters[plain], self.specs[id(mapping[name])])
                result.update(self._add_blank(name, mapping[name], parameter))
            else:
                original_names[self.names.saved_name(plain)] = name
        specs = [replace(self.specs[id(mapping[name])], name=plain) for plain, name in original_names.items()]
        if result:  # the recipe's rules expect the saved form of the merged parameters
            named = zip(self.plan.plain_names, self.plan.tensors, strict=True)
            saved = (replace(t.source, name=plain) for plain, t in named if plain not in original_names)
            specs += dict.fromkeys(saved)
        plan = make_plan(
            self.plan.recipe,
            specs,
            self.config,
            self.plan.request,
            None,
            self.plan.tie,
            method=self.plan.method,
            perturbation=self.plan.perturbation,
        )
        for tensor in plan.tensors:
            if tensor.source.name not in original_names:
                continue
            name = original_names[tensor.source.name]
            moved = replace(tensor, source=self.specs[id(mapping[name])])
            result.update(self._add_blank(name, mapping[name], moved))
        return result

    def _add_blank(self, name: str, narrow: torch.Tensor, tensor: TensorPlan) -> dict[str, torch.Tensor]:
        return {self.names.wide_name(name, tensor): self.blank(narrow, tensor)}

    def blank(self, narrow: torch.Tensor, tensor: TensorPlan) -> torch.Tensor:
        """Return the blank tensor of a plan; one for all narrow tensors that share their data and become the same."""
        source, target = replace(tensor.source, name=""), replace(tensor.target, name="")
        unnamed = replace(tensor, source=source, target=target, rule="")
        same = (self.places.get(id(narrow), id(narrow)), unnamed)
        if same not in self.shared:
            self.shared[same] = blank_tensor(tensor.target)
            self.plans_by_id[id(self.shared[same])] = tensor
        return self.shared[same]

    def _plan_merged(self, tensor: TensorPlan, spec: TensorSpec) -> TensorPlan:
        """Plan a parameter whose form in the reference model's memory differs from the saved one."""
        if spec.shape != tensor.source.shape:
            raise PlanError(
                f"`{spec.name}`, saved with the optimizer, has the shape {spec.shape}, expected {tensor.source.shape}"
            )
        if self.plan.perturbation is not None or not self.plan.method.is_copying:
            raise PlanError(
                f"`{spec.name}`, saved with the optimizer, has the form of the model in memory, "
                "for which the noise would differ",
                hint="save the optimizer state in a file without weights; those of the checkpoint are enough",
            )
        return replace(tensor, source=spec, target=replace(tensor.target, dtype=spec.dtype))


@dataclass(frozen=True)
class _Walker:
    """Replaces weights, state, schedules and sizes in a training checkpoint, and copies the rest.

    Attributes:
        replaced: the new value of each place that is known.
        own: what belongs to the checkpoint itself.
        optimizers: the narrow optimizers, each with its wide groups.
        weights: recognizes other weights, such as averages of them.
        copied: the places that are copied unchanged, as they are found.
    """

    replaced: Mapping[Place, Any]
    own: OwnContent
    optimizers: Sequence[tuple[OptimizerTree, Sequence[WideGroup]]]
    weights: _WeightFinder
    copied: list[str]

    def widen(self, content: Any, place: Place) -> Any:
        """Return the wide form of the content at a place."""
        if place in self.replaced:
            return self.replaced[place]
        own_keys = {source[-1] for source in self.own.weights.values() if source[:-1] == place}
        if is_optimizer(content) and not own_keys:
            raise self._unplanned(place)
        if (schedule := self._widen_schedule(content, place)) is not None:
            return schedule
        if isinstance(content, (list, tuple)) and not isinstance(content, torch.Size):
            return self._widen_sequence(content, place)
        if not isinstance(content, Mapping):
            self.copied.append(place_name(place))
            return content
        wide = self._widen_own(content, place) if own_keys else self.weights.widen(content)
        if wide is not None and not own_keys:
            return wide
        rest = (key for key in content if key not in own_keys and (*place, key) not in self.own.dropped)
        changed = {**(wide or {}), **{key: self.widen(content[key], (*place, key)) for key in rest}}
        return changed if type(content) is dict else _like(content, changed)

    def _unplanned(self, place: Place) -> PlanError:
        """Return the error for an optimizer's state that is not widened and would stay narrow."""
        name = place_name(place)
        if self.optimizers:
            return PlanError(
                f"the file holds another optimizer's state at `{name}`, which would stay narrow",
                hint="save the file without it or with all of them under one key, or leave out the states with "
                "`--optimizer none`",
            )
        return PlanError(
            f"the file holds an optimizer's state at the unusual key `{name}`",
            hint=f"widen it with `--key {'.'.join(map(str, place))}`, or leave it out with `--optimizer none`",
        )

    def _widen_schedule(self, content: Any, place: Place) -> dict[str, Any] | None:
        """Return the wide form of a scheduler's state; None for anything else.

        Its rates tell which one of several optimizers it belongs to.

        Raises:
            PlanError: it fits several optimizers whose wide groups differ.
        """
        able = [each for each in self.optimizers if each[1] and is_schedule(content, len(each[0].groups))]
        if len(able) > 1:
            base = list(content["base_lrs"])
            able = [
                each for each in able if [s.get("initial_lr", s.get("lr")) for s, _ in each[0].groups] == base
            ] or able
        made = [regrouped(content, [(group.source, group.multipliers.lr) for group in groups]) for _, groups in able]
        if any(each != made[0] for each in made):
            raise PlanError(
                f"the schedule at `{place_name(place)}` fits several of the file's optimizers",
                hint="save the file without it, or widen without the states: `--optimizer none`",
            )
        return made[0] if made else None

    def _widen_sequence(self, content: Sequence[Any], place: Place) -> Any:
        """Return the wide form of a list; one without changes counts as one copied value."""
        before = len(self.copied)
        wide = [self.widen(value, (*place, index)) for index, value in enumerate(content)]
        if all(new is old for new, old in zip(wide, content, strict=True)):
            self.copied[before:] = [place_name(place)]
            return content
        return wide if type(content) is list else type(content)(wide)  # type: ignore[call-arg]

    def _widen_own(self, content: Mapping[Any, Any], place: Place) -> dict[Any, Any]:
        """Return the wide weights of the checkpoint itself that are at a place; shared tensors stay shared."""
        wide: dict[Any, Any] = {}
        for tensor in self.weights.plan.tensors:
            source = self.own.weights[tensor.source.name]
            if source[:-1] == place:
                value = content[source[-1]]
                moved = replace(tensor, source=self.weights.specs[id(value)])
                wide[tensor.target.name] = self.weights.blank(value, moved)
        return wide


def _like(mapping: Mapping[Any, Any], content: dict[Any, Any]) -> Any:
    """Return content as the kind of mapping that it was."""
    return type(mapping)(content)  # type: ignore[call-arg]

"""Widening everything that a training checkpoint holds: optimizer, weights, and what is copied."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from mupscale_cli.dtypes import TensorSpec
from mupscale_cli.errors import CheckpointError, PlanError
from mupscale_cli.optimizers.formats.torch_reading import blank_tensor
from mupscale_cli.optimizers.groups import WideGroup
from mupscale_cli.optimizers.multipliers import ScaledTensor
from mupscale_cli.optimizers.nested import Place, place_name, value_at, walk
from mupscale_cli.optimizers.state_plan import ParameterNames, Policy, StateEntry, plan_state, strip_wrappers
from mupscale_cli.optimizers.tree import Groups, is_optimizer, parse_tree, render_tree
from mupscale_cli.plan import Plan, TensorPlan, make_plan
from mupscale_cli.plan.dims import keep_dims

_USUAL_KEYS = ("optimizer", "optimizer_state_dict", "optimizer_state", "optim")
NamesOf = Callable[[Groups, Mapping[Any, Any]], Mapping[int, str]]


@dataclass(frozen=True)
class WideContent:
    """What a widened training checkpoint holds.

    Attributes:
        content: nested mappings and sequences with blank tensors.
        tensors: how each of them is made; the targets are named by their place.
        groups: of the optimizer.
        copied: top-level entries that were left as they are.
    """

    content: Any
    tensors: tuple[TensorPlan, ...]
    groups: tuple[WideGroup, ...]
    copied: tuple[str, ...]


def scales_by_parameter(plan: Plan) -> Callable[[str], list[ScaledTensor]]:
    """What became of a parameter, by the name that its optimizer has for it."""
    names = ParameterNames(plan)

    def find(parameter: str) -> list[ScaledTensor]:
        return [
            ScaledTensor(names.wide_name(parameter, t), t.parts, t.source.shape, t.target.shape, t.offset)
            for t in names.find(parameter)
        ]

    return find


def locate_optimizer(content: Any, key: str | None, where: str) -> Place:
    """Where in a checkpoint the optimizer's state dict is.

    Args:
        content: of the checkpoint.
        key: dotted keys that lead to it, if the user said so.
        where: the file, for messages.

    Raises:
        CheckpointError: there is none.
    """
    found = ", ".join(map(str, list(content)[:8])) if isinstance(content, Mapping) else type(content).__name__
    if key is not None:
        place = tuple(part for part in key.split(".") if part)
        if not is_optimizer(value_at(content, place)):
            raise CheckpointError(f"`{where}` has no optimizer's state at `{key}`; it holds {found}")
        return place
    if is_optimizer(content):
        return ()
    for usual in _USUAL_KEYS:
        if isinstance(content, Mapping) and is_optimizer(content.get(usual)):
            return (usual,)
    raise CheckpointError(
        f"`{where}` holds no optimizer's state where one is looked for; it holds {found}",
        hint="say where it is with `--key NAME`",
    )


def widen_content(
    content: Any,
    specs: Mapping[int, TensorSpec],
    root: Place,
    plan: Plan,
    policy: Policy,
    config: Mapping[str, Any] | None,
    names_of: NamesOf,
) -> WideContent:
    """Plan the widened form of a training checkpoint.

    Args:
        content: nested mappings and sequences with tensors that need no data.
        specs: the spec of each tensor, by its id().
        root: where the optimizer's state dict is.
        plan: of the weights.
        policy: for the state.
        config: config.json of the narrow weights.
        names_of: gives names to numbered parameters.

    Raises:
        MupscaleError: state and weights do not belong together.
    """
    tree = parse_tree(value_at(content, root), names_of)
    made: dict[int, TensorPlan] = {}
    entries = [
        StateEntry(name, key, specs[id(value)])
        for name, state in tree.states.items()
        for key, value in state.items()
        if isinstance(value, torch.Tensor)
    ]
    states: dict[str, dict[str, Any]] = {}
    names = ParameterNames(plan)
    for state in plan_state(plan, entries, policy):
        tensor = blank_tensor(state.tensor.target)
        made[id(tensor)] = state.tensor
        states.setdefault(state.parameter, {})[state.key] = tensor
    if policy != "reset":
        for name, state_values in tree.states.items():
            plain = {key: value for key, value in state_values.items() if not isinstance(value, torch.Tensor)}
            for tensor_plan in names.find(name) if plain else ():
                states.setdefault(names.wide_name(name, tensor_plan), {}).update(plain)
    optimizer, groups = render_tree(tree, states, scales_by_parameter(plan))
    copied: list[str] = []
    whole = _replaced(content, root, optimizer, (), _WeightFinder(names, plan, config, specs, made), copied)
    tensors = tuple(_placed(place, tensor, made, specs) for place, tensor in walk(whole))
    # The blank tensors of `made` are alive in `whole`, so their ids are theirs alone.
    return WideContent(whole, tensors, tuple(groups), tuple(copied))


def _placed(
    place: Place, tensor: torch.Tensor, made: Mapping[int, TensorPlan], specs: Mapping[int, TensorSpec]
) -> TensorPlan:
    name = place_name(place)
    if id(tensor) in made:
        plan = made[id(tensor)]
        return replace(plan, target=replace(plan.target, name=name))
    spec = specs[id(tensor)]
    return TensorPlan(spec, replace(spec, name=name), "", "keep", keep_dims(spec.shape))


@dataclass(frozen=True)
class _WeightFinder:
    """Recognises the weights among everything else, and plans them like a checkpoint of their own."""

    names: ParameterNames
    plan: Plan
    config: Mapping[str, Any] | None
    specs: Mapping[int, TensorSpec]
    made: dict[int, TensorPlan]

    def widened(self, mapping: Mapping[Any, Any]) -> dict[Any, Any] | None:
        """The widened mapping, if it is one from names of weights to tensors.

        Raises:
            MupscaleError: it is, but holds tensors that the recipe does not know or that have other shapes.
        """
        if not all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in mapping.items()):
            return None
        if not any(self.names.knows(name) for name in mapping):
            return None
        kept_together = {tensor.source.name: tensor for tensor in self.plan.parameters}
        spelt, result = {}, {}
        for name in mapping:
            plain = strip_wrappers(name)
            if plain in kept_together:
                result.update(self._made(name, self._in_memory(kept_together[plain], self.specs[id(mapping[name])])))
            else:
                spelt[self.names.saved_name(plain)] = name
        specs = [replace(self.specs[id(mapping[name])], name=plain) for plain, name in spelt.items()]
        if result:  # whose other form the recipe's rules are for
            specs += dict.fromkeys(t.source for t in self.plan.tensors if t.source.name not in spelt)
        factors = {axis.name: axis.factor for axis in self.plan.axes}
        plan = make_plan(
            self.plan.recipe,
            specs,
            self.config,
            factors,
            None,
            self.plan.tie,
            method=self.plan.method,
            perturbation=self.plan.perturbation,
        )
        for tensor in plan.tensors:
            if tensor.source.name not in spelt:
                continue
            name = spelt[tensor.source.name]
            result.update(self._made(name, replace(tensor, source=self.specs[id(mapping[name])])))
        return result

    def _made(self, name: str, tensor: TensorPlan) -> dict[str, torch.Tensor]:
        wide = blank_tensor(tensor.target)
        self.made[id(wide)] = tensor
        return {self.names.wide_name(name, tensor): wide}

    def _in_memory(self, tensor: TensorPlan, spec: TensorSpec) -> TensorPlan:
        """The plan of a parameter that the reference model keeps in another form than the checkpoint."""
        if spec.shape != tensor.source.shape:
            raise PlanError(
                f"the weights beside the optimizer have `{spec.name}` in the shape {spec.shape}, "
                f"expected was {tensor.source.shape}"
            )
        if self.plan.perturbation is not None or not self.plan.method.is_copying:
            raise PlanError(
                f"`{spec.name}` is of weights in the form that the model has in memory, whose noise would be another",
                hint="give the optimizer's state in a file without the weights, which are in the checkpoint",
            )
        return replace(tensor, source=spec, target=replace(tensor.target, dtype=spec.dtype))


def _replaced(
    content: Any, root: Place, optimizer: Any, place: Place, weights: _WeightFinder, copied: list[str]
) -> Any:
    """The content with the optimizer replaced and every mapping of weights widened."""
    if place == root:
        return optimizer
    if not isinstance(content, Mapping):
        copied.append(place_name(place))
        return content
    wide = weights.widened(content)
    if wide is not None:
        return wide
    return {key: _replaced(value, root, optimizer, (*place, key), weights, copied) for key, value in content.items()}

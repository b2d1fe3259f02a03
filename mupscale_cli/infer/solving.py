"""Solve an architecture: find its axes, group its tensors and search for exact layouts, with each kind of readout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from mupscale_cli.architecture.expressions import evaluate, names_in, parse_expression
from mupscale_cli.infer.architecture import Architecture, TransformersArchitecture, random_model
from mupscale_cli.infer.axes import Axes, find_axes
from mupscale_cli.infer.derived import derived_size
from mupscale_cli.infer.draft import Variant
from mupscale_cli.infer.errors import InferError
from mupscale_cli.infer.groups import find_groups
from mupscale_cli.infer.initial import initial_state, is_tied
from mupscale_cli.infer.layouts import Group
from mupscale_cli.infer.search import Budget, Note, Search, SearchResult
from mupscale_cli.infer.shapes import DoubledShapes, Monomial
from mupscale_cli.infer.trials import Outcome, State, TrialRunner
from mupscale_cli.infer.vocabulary import ROTATED, kind_of


@dataclass(frozen=True)
class Solution:
    """What the search found for an architecture with a tied or an untied readout.

    Attributes:
        runner: the architecture, its axes and its groups of tensors.
        result: the result of the search.
        tied: whether the readout shares the embedding's weight.
    """

    runner: TrialRunner
    result: SearchResult
    tied: bool

    @property
    def architecture(self) -> Architecture:
        return self.runner.architecture

    @property
    def variant(self) -> Variant:
        return Variant(self.runner.groups, self.result.state)

    def reason(self, axis: str) -> str:
        """Explain why an axis is fixed."""
        outcome = self.result.unsolved[axis]
        if outcome.problem:
            return f"no exact layout was found: {outcome.problem[:150]}"
        config = self.architecture.config
        if kind_of(axis) in ROTATED and self.runner.is_rotary:
            return (
                "rotary frequencies depend on the size of a head, so copies inside a head would rotate at other speeds"
            )
        where = _difference(axis, outcome)
        if kind_of(axis) in ("h", "kv", "g") and any("alibi" in key for key in config):
            return f"no exact layout was found: ALiBi's slopes depend on the number of heads ({where})"
        return f"no exact layout was found: {where}"


def _difference(axis: str, outcome: Outcome) -> str:
    if not outcome.first:
        return "the output differs"
    where = f"`{outcome.first}` differs"
    if outcome.progress == 0 and axis != "experts":
        where += ", the first module after the embeddings; positions may be computed from the width"
    return where


def solve(architecture: Architecture, budget: Budget, note: Note) -> Solution:
    """Find the axes of an architecture and layouts under which they widen exactly.

    Args:
        architecture: the architecture.
        budget: limits of the search.
        note: receives progress messages.

    Raises:
        InferError: the architecture has no axis, or no axis widens exactly.
    """
    axes = find_axes(architecture)
    if not axes.candidates:
        raise InferError(f"no key of the config of `{architecture.name}` makes its tensors wider")
    keys = (f"{axis.name} ({', '.join(key for key, _ in axis.keys)})" for axis in axes.candidates)
    note(f"axes to try: {', '.join(keys)}")
    model = random_model(architecture)
    axes, groups = _group_tensors(architecture, axes, model, note)
    runner = TrialRunner(architecture, axes, groups, model)
    if any(bool(output.isnan().any()) for output in runner.outputs.values()):
        raise InferError(f"the random tiny `{architecture.name}` computes values that are no numbers")
    runner = _without_unreached(runner, model, note)
    tied = is_tied(model)
    state = initial_state(runner.groups, tied, runner.last_norm, axes.candidates, architecture.config)
    for axis, reason in runner.axes.still.items():
        note(f"axis {axis}: does not grow: {reason}")
    moving = tuple(axis.name for axis in runner.axes.candidates if axis.name not in runner.axes.still)
    solution = Solution(runner, Search(runner, budget, note, only=moving).run(state), tied)
    if not solution.result.solved:
        raise InferError(
            f"no axis of `{architecture.name}` can be widened exactly",
            excerpt="\n".join(f"  {axis}: {solution.reason(axis)}" for axis in solution.result.unsolved),
        )
    return solution


def _group_tensors(
    architecture: Architecture, axes: Axes, model: torch.nn.Module, note: Note
) -> tuple[Axes, tuple[Group, ...]]:
    """Group the tensors; give up axes under which sizes are not sums of products.

    If some size is only a part of an axis, such as half of a head, the axis is laid out where it can be, but stays.
    """
    order = list(architecture.disk_tensors(model))
    while True:
        try:
            return axes, find_groups(DoubledShapes(architecture, axes.candidates), axes, model, order)
        except InferError as error:
            culprit = next((axis.name for axis in reversed(axes.candidates) if axis.name in error.axes), None)
            if culprit is None:
                raise
            # Axes that the config ties to the residual stream stay or are given up together.
            alias = next((alias for alias, product in axes.aliases.items() if culprit in product), None)
            if culprit not in axes.still:
                tied = error.axes & {culprit, *(axes.aliases[alias] if alias else ())}
                axes = replace(axes, still={**axes.still, **dict.fromkeys(sorted(tied), error.message)})
                continue
            dropped = {culprit, *(axes.aliases[alias] if alias else ())}
            note(f"{', '.join(sorted(dropped))}: given up: {error.message}")
            remaining = tuple(axis for axis in axes.candidates if axis.name not in dropped)
            if not remaining:
                raise
            given_up = {axis.key: error.message for axis in axes.candidates if axis.name in dropped}
            axes = replace(
                axes,
                candidates=remaining,
                aliases={name: product for name, product in axes.aliases.items() if name != alias},
                given_up={**axes.given_up, **given_up},
                still={name: reason for name, reason in axes.still.items() if name not in dropped},
            )


def _without_unreached(runner: TrialRunner, model: torch.nn.Module, note: Note) -> TrialRunner:
    """Give up the axes of tensors that random inputs do not reach.

    Raises:
        InferError: no axis would be left.
    """
    unreached = runner.unreached()
    if not unreached:
        return runner
    reason = "the output of its tiny model does not depend on `{}`, so that nothing would show how to widen it"
    kept, given_up = [], {}
    for axis in runner.axes.candidates:
        names = {axis.name, *(alias for alias, product in runner.axes.aliases.items() if axis.name in product)}
        tensor = next((unreached[name] for name in sorted(names) if name in unreached), None)
        if tensor is None:
            kept.append(axis)
        else:
            given_up[axis.key] = reason.format(tensor)
            note(f"{axis.name}: given up: {given_up[axis.key]}")
    if not kept:
        raise InferError(
            f"no recipe can be drafted for `{runner.architecture.name}`: {next(iter(given_up.values()))}",
            hint="write a recipe whose `parts` name a recipe for each part (`mupscale help language`)",
        )
    if not given_up:
        return runner
    names = {axis.name for axis in kept}
    aliases = {alias: product for alias, product in runner.axes.aliases.items() if names & set(product)}
    axes = replace(runner.axes, candidates=tuple(kept), aliases=aliases, given_up={**runner.axes.given_up, **given_up})
    axes, groups = _group_tensors(runner.architecture, axes, model, note)
    return TrialRunner(runner.architecture, axes, groups, model)


def solve_other_tie(solution: Solution, budget: Budget, note: Note) -> Solution | None:
    """Solve the same architecture with an untied readout if it was tied, and with a tied one if it was not.

    Returns:
        The solution, or None if there is no such setting, it cannot be built, or it widens fewer axes.
    """
    first, axes = solution.architecture, solution.runner.axes
    if not isinstance(first, TransformersArchitecture) or "tie_word_embeddings" not in first.config:
        return None
    tied = not solution.tied
    architecture = TransformersArchitecture(first.name, first.task, {**first.config, "tie_word_embeddings": tied})
    try:
        model = random_model(architecture)
        if is_tied(model) != tied:
            return None
        doubled = DoubledShapes(architecture, axes.candidates)
        groups = find_groups(doubled, axes, model, list(architecture.disk_tensors(model)))
        runner = TrialRunner(architecture, axes, groups, model)
    except Exception as error:  # noqa: BLE001 (architectures raise anything)
        note(f"cannot build the model with tie_word_embeddings: {str(tied).lower()}: {error}")
        return None
    note(f"now with tie_word_embeddings: {str(tied).lower()}")
    start = initial_state(runner.groups, tied, runner.last_norm, axes.candidates, architecture.config)
    solved = solution.result.solved
    result = Search(runner, budget, note, only=solved).run(_carry_choices(solution, runner, start))
    if len(result.solved) < len(solved):
        if result.solved:
            note("this setting widens fewer axes and is left out")
        return None
    return Solution(runner, result, tied)


def _carry_choices(solution: Solution, runner: TrialRunner, start: State) -> State:
    """Start from the choices of another solution; only the scale of the last norm depends on the tie."""
    state = solution.result.state
    known = {group.pattern: choice for group, choice in zip(solution.runner.groups, state.choices, strict=True)}
    choices = []
    for group, choice in zip(runner.groups, start.choices, strict=True):
        before = known.get(group.pattern)
        if before is None or len(before.forms) != len(choice.forms):
            choices.append(choice)
        elif group.owner == runner.last_norm:
            choices.append(replace(before, powers=choice.powers, offset=choice.offset))
        else:
            choices.append(before)
    return State(tuple(choices), state.keys)


def with_derived_sizes(solution: Solution) -> Axes:
    """Return the axes with sizes that also say what an absent key means."""
    axes = solution.runner.axes
    keys = list(dict.fromkeys(key for axis in axes.candidates for key, _ in axis.keys))
    sizes = dict(axes.sizes)
    for axis in axes.candidates:
        if sizes[axis.name] != axis.key:
            continue
        dimension = _dimension_with(axis.name, solution.runner.groups)
        if dimension is not None:
            measure = _size_measure(solution.architecture, axes, axis.name, *dimension)
            derived = derived_size(measure, solution.architecture.config, axis.key, keys)
            if derived is not None:
                sizes[axis.name] = f"{axis.key} or {derived}"
    return replace(axes, sizes=sizes)


def _dimension_with(axis: str, groups: tuple[Group, ...]) -> tuple[str, int, Monomial] | None:
    """Return a tensor, a dimension and its size, where the size is a single product that contains the axis."""
    for group in groups:
        for dim, dimension in enumerate(group.dims):
            if len(dimension.polynomial) == 1 and axis in dimension.polynomial[0].axes:
                return group.names[0], dim, dimension.polynomial[0]
    return None


def _size_measure(
    architecture: Architecture, axes: Axes, axis: str, tensor: str, dim: int, product: Monomial
) -> Callable[[Mapping[str, Any]], int]:
    """Return a function from a config to an axis' size, read off a dimension that is a product of axes."""

    def measure(config: Mapping[str, Any]) -> int:
        size = architecture.shapes(config)[tensor][dim]
        known: dict[str, Any] = dict(config)
        for other in product.axes:
            if other != axis:
                size //= _size_of(other, axes, known)
        return size // product.count

    return measure


def _size_of(axis: str, axes: Axes, known: dict[str, Any]) -> int:
    """Evaluate the size of an axis, adding the sizes of the axes that it mentions to `known`."""
    expression = parse_expression(axes.sizes[axis])
    for name in names_in(expression):
        if name.name in axes.sizes and name.name not in known:
            known[name.name] = _size_of(name.name, axes, known)
    size = evaluate(expression, known)
    if type(size) is not int:
        raise InferError(f"cannot compute the size of the axis `{axis}`", axes=frozenset({axis}))
    return size

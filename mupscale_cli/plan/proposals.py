"""Proposing shapes with about as many parameters as requested, in the proportions of the source."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from mupscale_cli.architecture.layouts import Layout
from mupscale_cli.architecture.matching import match_rules
from mupscale_cli.architecture.types import Link
from mupscale_cli.dtypes import DTYPES
from mupscale_cli.errors import MupscaleError, PlanError
from mupscale_cli.plan.conditions import choose, environment
from mupscale_cli.plan.copies import Axis
from mupscale_cli.plan.dims import grown_size
from mupscale_cli.plan.request import Request
from mupscale_cli.plan.tied import absent_tensors
from mupscale_cli.plan.types import Plan
from mupscale_cli.text import count_text

_STEPS = (128, 64, 32, 16, 8)  # sizes that hardware multiplies well
_NEAR = 0.3  # a shape whose logarithm of the number of parameters is farther off is not considered
_PROPORTION = 0.25  # what a difference between the axes' ratios costs, in the same unit
_ATTEMPTS = 40  # shapes to plan before giving up
_SHOWN = 5

Shape = dict[str, int]


@dataclass(frozen=True)
class _Search:
    """The shapes that a checkpoint can grow to.

    Attributes:
        free: the axes that grow, with known sizes; no other axis follows from them.
        counter: counts the parameters of a shape.
    """

    free: tuple[Axis, ...]
    counter: ParameterCounter

    def shapes(self, parameters: float) -> list[Shape]:
        """Return shapes with about as many parameters, best first.

        A shape costs |ln(parameters / requested)| + 1/4 ln(largest / smallest ratio of wide to narrow size).
        """
        costs = {}
        for shape in self._candidates(parameters):
            distance = math.log(self.counter.count(shape) / parameters)
            if abs(distance) < _NEAR:
                ratios = [shape[axis.name] / (axis.size or 1) for axis in self.free]
                costs[tuple(shape.items())] = abs(distance) + _PROPORTION * math.log(max(ratios) / min(ratios))
        best = sorted(costs, key=lambda items: (costs[items], items))
        return [self.counter.with_linked(dict(items)) for items in best]

    def _candidates(self, parameters: float) -> Iterator[Shape]:
        """Yield friendly sizes of the first axis, with sizes of the others in about the same proportion."""
        first, *others = self.free
        assert first.size is not None
        present = self.counter.count({})
        step = _step(first.size)
        for size in range(first.size, math.ceil(first.size * parameters / present) + step, step):
            choices = [_near_sizes(axis, size / first.size) for axis in others]
            nearest = {first.name: size, **{axis.name: near[0] for axis, near in zip(others, choices, strict=True)}}
            if abs(math.log(self.counter.count(nearest) / parameters)) < 2 * _NEAR:
                for chosen in itertools.product(*choices):
                    yield {**nearest, **{axis.name: near for axis, near in zip(others, chosen, strict=True)}}
        factor = 2
        while factor * present <= 2 * parameters:  # whole factors suit every architecture
            yield {axis.name: (axis.size or 1) * factor for axis in self.free}
            factor += 1


def _step(size: int) -> int:
    """Return the distance between friendly sizes of an axis: 1 if it has few units, such as heads."""
    return next((step for step in _STEPS if size % step == 0 and size >= 4 * step), 1)


def _near_sizes(axis: Axis, ratio: float) -> list[int]:
    """Return the friendly sizes around a ratio, nearest first."""
    assert axis.size is not None
    step = _step(axis.size)
    center = round(axis.size * ratio / step) * step
    near = {max(center + offset * step, axis.size) for offset in (-1, 0, 1)}
    return sorted(near, key=lambda size: abs(size - axis.size * ratio))  # type: ignore[operator]


@dataclass(frozen=True)
class ParameterCounter:
    """Counts the parameters of shapes without planning them.

    Attributes:
        links: the axes of the tensors that follow from others.
        axes: every axis by name, not widened.
        groups: number of tensors of each layout, set of axes in the name, and shape.
    """

    links: tuple[Link, ...]
    axes: Mapping[str, Axis]
    groups: Mapping[tuple[Layout | None, tuple[str, ...], tuple[int, ...]], int]

    def with_linked(self, shape: Mapping[str, int]) -> Shape:
        """Return a shape with the sizes of the axes that the config derives from its axes."""
        complete = dict(shape)
        for link in self.links:
            known = ((self.axes[name].size, complete.get(name)) for name in link.product)
            ratio = math.prod(after / before for before, after in known if before and after)
            if link.axis not in complete and (size := self.axes[link.axis].size):
                complete[link.axis] = round(size * ratio)
        return complete

    def count(self, shape: Mapping[str, int]) -> int:
        """Return the number of elements of all floating-point tensors."""
        sizes = {name: axis.size for name, axis in self.axes.items()} | self.with_linked(shape)
        wide = {name: replace(axis, size=sizes[name]) for name, axis in self.axes.items()}
        return sum(number * self._elements(*key, wide) for key, number in self.groups.items())

    def _elements(
        self, layout: Layout | None, named: tuple[str, ...], shape: tuple[int, ...], wide: Mapping[str, Axis]
    ) -> int:
        if layout is None:
            return math.prod(shape)
        dims = zip(layout.dims, shape, strict=True)
        copies = math.prod((wide[name].size or 1) / (self.axes[name].size or 1) for name in named)
        return round(copies * math.prod(grown_size(dim, self.axes, wide, size) for dim, size in dims))


def parameter_counter(narrow: Plan) -> ParameterCounter:
    """Group the tensors of a model that is not wider than its source by what decides their size."""
    plain = narrow.wrapping.plain
    specs = [replace(tensor.target, name=plain(tensor.target.name)) for tensor in narrow.tensors]
    stored = [spec.name for spec in specs]
    absent = absent_tensors(narrow.recipe, stored) if narrow.tie is not None else {}
    matches = match_rules(narrow.recipe, [*stored, *absent])
    values = environment(narrow.recipe, narrow.config or {}, matches, narrow.tie)
    groups: Counter[tuple[Layout | None, tuple[str, ...], tuple[int, ...]]] = Counter()
    for spec in specs:
        match = matches[spec.name]
        layout = choose(match.rule.choices, values, match).value
        if layout == "omit" or DTYPES[spec.dtype].kind != "float":
            continue
        names = tuple(name for part in match.rule.pattern.axes for name in part.names)
        groups[layout if isinstance(layout, Layout) else None, names, spec.shape] += 1
    links = tuple(link for link in narrow.recipe.links if link.axis in narrow.used)
    return ParameterCounter(links, {axis.name: axis for axis in narrow.axes}, groups)


def propose(
    narrow: Plan,
    parameters: float,
    request: Request,
    plan: Callable[[Request], Plan],
) -> tuple[Plan, ...]:
    """Return plans with about as many parameters as requested, best first.

    Args:
        narrow: a plan of the source that is as deep as the output, but not wider.
        parameters: requested number of parameters.
        request: the amounts of axes that are chosen already.
        plan: plans a request.

    Raises:
        PlanError: the checkpoint already has as many parameters, or no shape near the number can be planned.
    """
    present = narrow.num_parameters[1]
    if parameters <= present:
        raise PlanError(
            f"`--params` asks for {count_text(parameters)} parameters, but without growing wider, the model has "
            f"{count_text(present)}",
            hint="a model can only grow; `mupscale help limits` says what makes it smaller",
        )
    shapes = proposed_shapes(narrow, parameters, request)
    plans: list[Plan] = []
    refusal: MupscaleError | None = None
    for shape in shapes[:_ATTEMPTS]:
        try:
            plans.append(plan(replace(request, sizes=shape)))
        except MupscaleError as error:
            refusal = refusal or error
        if len(plans) == _SHOWN:
            break
    if not plans:
        why = f": {refusal.message}" if refusal else ""
        raise PlanError(
            f"no shape with about {count_text(parameters)} parameters can be reached from {count_text(present)}{why}",
            hint="ask for another number, or choose sizes with `--factor` and `--axis`",
        )
    return tuple(plans)


def proposed_shapes(narrow: Plan, parameters: float, request: Request) -> list[Shape]:
    """Return shapes of the axes that the recipe widens and the request does not name, best first; see `propose`.

    Raises:
        PlanError: there is no such axis.
    """
    recipe, counter = narrow.recipe, parameter_counter(narrow)
    following = {link.axis for link in recipe.links if set(link.product) & set(recipe.widen)}
    fixed = {*request.axes, *following}
    axes = (counter.axes[name] for name in recipe.widen if name in narrow.used and name not in fixed)
    free = tuple(axis for axis in axes if axis.size)
    if not free:
        raise PlanError(
            "`--params` finds no axis to grow: those of the recipe are named, or have no common size",
            hint="omit `--axis`, or choose a factor with `--factor`",
        )
    return _Search(free, counter).shapes(parameters)

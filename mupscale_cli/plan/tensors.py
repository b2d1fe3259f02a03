"""How each tensor of the output is made."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mupscale_cli.architecture.layouts import Dim, Layout
from mupscale_cli.architecture.matching import Match
from mupscale_cli.architecture.patterns import NameAxis, expand_name
from mupscale_cli.architecture.types import Choice, Recipe
from mupscale_cli.dtypes import DTYPES, TensorSpec
from mupscale_cli.errors import PlanError
from mupscale_cli.plan.copies import Axis
from mupscale_cli.plan.dims import DimMap, LayoutError, keep_dims, map_dim, power_scale, size_of
from mupscale_cli.plan.methods import Method
from mupscale_cli.plan.perturbation import Noise, Perturbation
from mupscale_cli.plan.types import TensorPlan

_MAX_TENSORS = 10**6  # that one becomes, where axes count tensors


class TensorPlanner:
    """Plans tensors; rules and shapes repeat in every layer, so their maps are kept."""

    def __init__(
        self, axes: Mapping[str, Axis], method: Method, perturbation: Perturbation | None, prefixes: Sequence[str]
    ) -> None:
        self.axes = axes
        self.method = method
        self.perturbation = perturbation
        self.prefixes = prefixes
        self.maps: dict[tuple[str, str, tuple[int, ...]], tuple[DimMap, ...]] = {}

    def plan(self, spec: TensorSpec, match: Match, choice: Choice[Any]) -> Iterable[TensorPlan]:
        layout = choice.value
        rule = match.rule.pattern.text
        if layout == "keep":
            plan = TensorPlan(spec, spec, rule, "keep", keep_dims(spec.shape))
        else:
            key = (rule, choice.text.value, spec.shape)
            if key not in self.maps:
                self.maps[key] = self._map_dims(spec, layout, choice)
            dims = self.maps[key]
            shape = tuple(dim.wide_size for dim in dims)
            plan = TensorPlan(
                spec,
                replace(spec, shape=shape),
                rule,
                choice.text.value,
                dims,
                power_scale(layout.powers, self.axes),
                layout.offset,
            )
        for copied in self._name_copies(plan, match):
            finished = self._grown(copied)
            _check_dtype(finished)
            yield finished

    def parameters(self, recipe: Recipe, specs: Iterable[TensorSpec]) -> tuple[TensorPlan, ...]:
        """Plans of the reference model's parameters that are tensors of the checkpoint in another form."""
        found: dict[str, TensorPlan] = {}
        for spec in specs:
            for name, choice in recipe.other_parameters(spec.name):
                layout = choice.value
                if name in found or not isinstance(layout, Layout):
                    continue
                try:
                    shape = tuple(size_of(dim, self.axes) for dim in layout.dims)
                except LayoutError as problem:
                    raise choice.text.error(f"`{name}` {problem}") from problem
                parameter = replace(spec, name=name, shape=shape)
                dims = self._map_dims(parameter, layout, choice)
                wide = replace(parameter, shape=tuple(dim.wide_size for dim in dims))
                scale = power_scale(layout.powers, self.axes)
                plan = TensorPlan(parameter, wide, name, choice.text.value, dims, scale, layout.offset)
                found[name] = self._grown(plan)
        return tuple(found.values())

    def _grown(self, plan: TensorPlan) -> TensorPlan:
        """A tensor's plan with what the method does beside copying: noise, shrinkage, values of fresh units."""
        growing = sum(any(s.multiplicity > 1 for s in dim.strips) for dim in plan.dims) + (plan.name_copies > 1)
        if not growing or DTYPES[plan.source.dtype].kind != "float":
            return plan
        if sum(size > 1 for size in plan.target.shape) < 2:  # gains and biases get no noise
            if self.method.is_copying:
                return plan
            # What a gain or a variance begins with is 1, a bias or a mean with 0.
            begins_at_one = plan.target.name.endswith((".weight", "running_var"))
            return replace(plan, fresh=plan.scale - plan.offset if begins_at_one else 0.0)
        is_matrix, c = growing > 1, plan.parts[0][0]
        shrink = 1.0
        if not self.method.is_copying:
            # The 1/k of a readout is muP's multiplier; within a matrix it is a share, of which fresh units take none.
            shrink = self.method.shrink * (1.0 if is_matrix else c / plan.scale)
        return replace(plan, noise=self._noise(plan, is_matrix=is_matrix), shrink=shrink)

    def _noise(self, plan: TensorPlan, *, is_matrix: bool) -> Noise | None:
        pieces = math.prod(max(strip.pieces for strip in dim.strips) for dim in plan.dims)
        asked = self.perturbation
        if asked is None or (asked.mode == "preserving" and pieces == 1):
            return None
        # Files that call the same weights by other prefixes, as training checkpoints do, must get the same noise.
        prefix = next((prefix for prefix in self.prefixes if plan.target.name.startswith(prefix)), "")
        return Noise(
            asked,
            plan.target.name.removeprefix(prefix),
            plan.target.shape,
            is_matrix,
            _fan_in(plan),
            plan.parts[0][0],
            pieces * plan.name_pieces,
        )

    def _map_dims(self, spec: TensorSpec, layout: Layout, choice: Choice[Any]) -> tuple[DimMap, ...]:
        if len(layout.dims) != len(spec.shape):
            raise choice.text.error(
                f"`{spec.name}` has {len(spec.shape)} dimensions {_shape(spec.shape)}, this layout {len(layout.dims)}"
            )
        maps = []
        for position, (dim, size) in enumerate(zip(layout.dims, spec.shape, strict=True)):
            if size == 0:
                raise PlanError(f"`{spec.name}` is empty: its shape is {_shape(spec.shape)}")
            try:
                maps.append(map_dim(dim, self.axes, size))
            except LayoutError as problem:
                sizes = ", ".join(f"{axis.name} = {axis.size}" for axis in self.axes.values() if axis.size is not None)
                raise choice.text.error(
                    f"`{spec.name}` has the shape {_shape(spec.shape)}, but dimension {position}, "
                    f"`{_excerpt(choice.text.value, dim)}`, {problem}",
                    dim.span,
                    hint=f"config and tensors disagree, or this is not the recipe for them; {sizes}",
                ) from problem
        return tuple(maps)

    def _name_copies(self, plan: TensorPlan, match: Match) -> Iterable[TensorPlan]:
        """One plan for each tensor that the axes in the name turn the source into."""
        parts = match.rule.pattern.axes
        if not parts:
            yield plan
            return
        named = [self.axes[name] for part in parts for name in part.names]
        if math.prod(axis.factor for axis in named) > _MAX_TENSORS:
            raise PlanError(f"`{plan.source.name}` would become more than {_MAX_TENSORS} tensors")
        copies = [list(self._indices(part, plan, match)) for part in parts]
        contracted = [len(indices) if part.contracted else 1 for part, indices in zip(parts, copies, strict=True)]
        for chosen in itertools.product(*map(enumerate, copies)):
            piece = 0
            for part, (digit, _), pieces in zip(parts, chosen, contracted, strict=True):
                piece = piece * pieces + digit if part.contracted else piece
            name = expand_name(match.rule.pattern, match.groups, [index for _, index in chosen])
            yield replace(
                plan,
                target=replace(plan.target, name=name),
                name_copies=math.prod(map(len, copies)),
                piece=piece,
                name_pieces=math.prod(contracted),
            )

    def _indices(self, part: NameAxis, plan: TensorPlan, match: Match) -> Iterable[int]:
        """The numbers that the copies of a tensor have, where its own counts the axes of `part`."""
        rest, digits = int(match.groups[part.group]), []
        axes = [self.axes[name] for name in part.names]
        for axis in reversed(axes[1:]):
            if axis.size is None:
                raise match.rule.text.error(f"the axis `{axis.name}` has no one size, so it cannot count tensors")
            rest, digit = divmod(rest, axis.size)
            digits.append(digit)
        if axes[0].size is not None and rest >= axes[0].size:
            size = math.prod(axis.size or 1 for axis in axes)
            raise match.rule.text.error(
                f"`{plan.source.name}` is beyond the {size} that `{{{' '.join(part.names)}}}` has"
            )
        digits = [rest, *reversed(digits)]
        for axis in axes:
            if axis.factor > 1 and not self.method.is_copying:
                raise PlanError(
                    f"the axis `{axis.name}` counts tensors, and `--method {self.method.name}` has nothing to make new "
                    "ones of",
                    hint=f"leave it with `--axis {axis.name}=1`, or take another method",
                )
        for chosen in itertools.product(
            *(self._positions(axis, digit) for axis, digit in zip(axes, digits, strict=True))
        ):
            index = 0
            for axis, position in zip(axes, chosen, strict=True):
                index = index * (axis.wide_size or 1) + position
            yield index

    @staticmethod
    def _positions(axis: Axis, unit: int) -> tuple[int, ...]:
        """The new numbers of a unit of an axis that counts tensors."""
        if axis.size is None:  # copies of what has no number of its own stay together
            return tuple(range(unit * axis.factor, (unit + 1) * axis.factor))
        return axis.copy_map().positions[unit]


def name_prefixes(recipe: Recipe) -> tuple[str, ...]:
    """What may stand before the names of tensors, longest first."""
    return tuple(
        sorted({value for words in recipe.prefixes for value in words.values() if value}, key=len, reverse=True)
    )


def _fan_in(plan: TensorPlan) -> int:
    """How many wide elements the layer sums for each output; 1 for a table in which rows are looked up."""
    first, *others = plan.dims
    kernel = math.prod(dim.wide_size for dim in others[1:])
    if _is_summed(first):  # stored as inputs x outputs
        return first.wide_size * kernel
    is_summed = any(map(_is_summed, others))
    is_lookup = not is_summed and all(strip.multiplicity == 1 for strip in first.strips)
    return 1 if is_lookup else math.prod(dim.wide_size for dim in others)


def _is_summed(dim: DimMap) -> bool:
    return any(digit.contracted or digit.averaged for strip in dim.strips for digit in strip.digits)


def _check_dtype(plan: TensorPlan) -> None:
    kind = DTYPES[plan.source.dtype].kind
    if kind == "float" or not (plan.is_changed or kind == "packed"):
        return
    if kind == "packed":
        raise PlanError(
            f"`{plan.source.name}` is {plan.source.dtype}, whose scales are stored elsewhere; "
            "such weights are not widened",
            hint="dequantize the model to bfloat16 first",
        )
    if plan.is_scaled:
        raise PlanError(
            f"`{plan.source.name}` is {plan.source.dtype}, but its rule scales it; "
            "integers that stand for weights are packed",
            hint="dequantize the model to bfloat16 first",
        )


def _excerpt(text: str, dim: Dim) -> str:
    return text[slice(*dim.span)]


def _shape(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, shape))})"

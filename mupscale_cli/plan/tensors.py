"""Planning each tensor of the output."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from mupscale_cli.architecture.layouts import AxisRef, Dim, Fixed, Layout, axis_refs
from mupscale_cli.architecture.matching import Match
from mupscale_cli.architecture.patterns import NameAxis, expand_name
from mupscale_cli.architecture.types import Choice, Recipe
from mupscale_cli.dtypes import DTYPES, TensorSpec
from mupscale_cli.errors import PlanError
from mupscale_cli.plan.axes import config_keys, settings_text
from mupscale_cli.plan.conditions import Values
from mupscale_cli.plan.copies import Axis, CopyMap
from mupscale_cli.plan.dims import DimMap, LayoutError, keep_dims, known_size, map_dim, power_scale
from mupscale_cli.plan.fresh import FreshUnits
from mupscale_cli.plan.methods import Method
from mupscale_cli.plan.perturbation import Init, Noise, Perturbation
from mupscale_cli.plan.types import TensorPlan

_MAX_TENSORS = 10**6  # that one tensor may become if an axis in its name is widened


class TensorPlanner:
    """Plans tensors, and caches what those of one rule and shape share, since both repeat in every layer."""

    def __init__(
        self,
        fresh: FreshUnits,
        method: Method,
        perturbation: Perturbation | None,
        prefixes: Sequence[str],
        values: Values,
    ) -> None:
        self.axes = fresh.axes
        self.fresh = fresh
        self.method = method
        self.perturbation = perturbation
        self.prefixes = prefixes
        self.values = values
        self.maps: dict[Any, tuple[DimMap, ...]] = {}
        self.alike: dict[Any, TensorPlan] = {}
        self.counted: dict[str, CopyMap] = {}  # of axes that count tensors

    def plan(self, spec: TensorSpec, match: Match, choice: Choice[Any]) -> Iterable[TensorPlan]:
        """Plan the output tensors that a tensor becomes; several if an axis in its name is widened.

        Args:
            spec: the tensor of the checkpoint.
            match: its rule in the recipe.
            choice: the layout to use; not `omit`.

        Raises:
            RecipeError: the layout contradicts the tensor.
            PlanError: the tensor cannot be widened.
        """
        layout = choice.value
        rule = match.rule.pattern.text
        kind = spec.name.rpartition(".")[2]  # a rule for both may treat weights and biases differently
        key = (rule, choice.text.value, spec.shape, spec.dtype, kind, self.fresh.in_front(spec.name))
        if key in self.alike:
            yield from self._name_copies(self.alike[key].renamed(spec, spec.name), match)
            return
        if layout == "keep":
            plan = TensorPlan(spec, spec, rule, "keep", keep_dims(spec.shape))
        else:
            if key not in self.maps:
                self.maps[key] = self._map_dims(spec, layout, choice, spec.name)
            plan = self._scaled(spec, rule, layout, choice, self.maps[key], spec.name)
        for copied in self._name_copies(plan, match):
            planned = self._apply_method(copied)
            _check_dtype(planned)
            yield planned
        if planned.noise is None and planned.init is None and self.perturbation is None:  # these depend on the name
            self.alike[key] = planned
            _ = planned.parts  # computed once for all of them

    def parameters(self, recipe: Recipe, specs: Iterable[TensorSpec]) -> tuple[TensorPlan, ...]:
        """Plan the reference model's parameters that the checkpoint stores in another form."""
        members: dict[str, tuple[Choice[Any], tuple[int, int], list[TensorSpec]]] = {}
        for spec in specs:
            for name, choice, share in recipe.other_parameters(spec.name):
                members.setdefault(name, (choice, share, []))[2].append(spec)
        return tuple(
            self._parameter(name, choice.value, choice, _share(stored, *share))
            for name, (choice, share, stored) in members.items()
            if isinstance(choice.value, Layout)
        )

    def _parameter(self, name: str, layout: Layout, choice: Choice[Any], stored: Sequence[TensorSpec]) -> TensorPlan:
        """Plan a parameter that the checkpoint stores as other tensors."""
        try:
            shape = self._joined_shape(layout, stored)
        except LayoutError as problem:
            raise choice.text.error(f"`{name}` {problem}") from problem
        parameter = replace(stored[0], name=name, shape=shape)
        dims = self._map_dims(parameter, layout, choice, stored[0].name)
        return self._apply_method(self._scaled(parameter, name, layout, choice, dims, stored[0].name))

    def _joined_shape(self, layout: Layout, stored: Sequence[TensorSpec]) -> tuple[int, ...]:
        """Return the shape of a parameter; the elements tell the one size that the axes leave open."""
        sizes: list[int | None] = []
        for position, dim in enumerate(layout.dims):
            is_joined = dim == Fixed(None, dim.span)
            sizes.append(_joined_size(stored, position) if is_joined else known_size(dim, self.axes))
        known = math.prod(size for size in sizes if size is not None)
        rest, remainder = divmod(sum(math.prod(spec.shape) for spec in stored), known)
        if sizes.count(None) > 1 or (None in sizes and remainder):
            raise LayoutError("has parts of unknown size")
        return tuple(rest if size is None else size for size in sizes)

    def _scaled(
        self, spec: TensorSpec, rule: str, layout: Layout, choice: Choice[Any], dims: tuple[DimMap, ...], name: str
    ) -> TensorPlan:
        """Plan a tensor that is stored under `name`, or is a parameter that the tensor of that name belongs to."""
        wide = replace(spec, shape=tuple(dim.wide_size for dim in dims))
        scale = power_scale(layout.powers, self.axes) * self.fresh.scale(name, layout)
        reads = frozenset(ref.name for ref in axis_refs(layout) if isinstance(ref, AxisRef) and ref.contracted)
        first = layout.dims[0] if layout.dims else None
        return TensorPlan(
            spec,
            wide,
            rule,
            choice.text.value,
            dims,
            scale,
            layout.offset,
            undone=self.fresh.undone(name),
            taken=power_scale(tuple(power for power in layout.powers if power.axis in reads), self.axes),
            reads=reads,
            writes=first.name if isinstance(first, AxisRef) and not first.contracted else None,
        )

    def _apply_method(self, plan: TensorPlan) -> TensorPlan:
        """Add the effects of the method other than copying: noise, shrinking and the values of fresh units."""
        growing = sum(dim.wide_size > dim.size for dim in plan.dims) + (plan.name_copies > 1)
        if not growing or DTYPES[plan.source.dtype].kind != "float":
            return plan
        if sum(size > 1 for size in plan.target.shape) < 2:  # gains and biases get no noise
            # The initial value of gains and variances is 1, that of biases and means 0.
            starts_at_one = len(plan.dims) == 1 and plan.target.name.endswith((".weight", "running_var"))
            return replace(plan, fresh=plan.scale - plan.offset if starts_at_one else 0.0)
        plan = replace(plan, init=self._init(plan))
        is_matrix, c = growing > 1, plan.parts[0][0]
        shrink = 1.0
        if not self.method.is_copying:
            # The 1/k of a readout is muP's multiplier. In a matrix it is a share, and fresh units take no share.
            shrink = self.method.shrink * (1.0 if is_matrix else c / plan.scale)
        return replace(plan, noise=self._noise(plan, is_matrix=is_matrix), shrink=shrink)

    def _init(self, plan: TensorPlan) -> Init | None:
        """Return the initial weights of a matrix's fresh elements; None if it has none that may differ from 0."""
        digits = [digit for dim in plan.dims for strip in dim.strips for digit in strip.digits]
        if not self.method.initializes or not any(digit.fill == "init" and digit.units.num_fresh for digit in digits):
            return None
        fan_in = Fraction(_fan_in(plan, wide=False), _fan_in(plan))
        is_matrix = sum(dim.wide_size > dim.size for dim in plan.dims) > 1
        size = plan.scale * (math.sqrt(fan_in) if is_matrix else float(fan_in))
        return Init(self.method.seed, self._seeding_name(plan), size)

    def _seeding_name(self, plan: TensorPlan) -> str:
        """Return a tensor's name without prefix: training checkpoints use others for the same weights."""
        prefix = next((prefix for prefix in self.prefixes if plan.target.name.startswith(prefix)), "")
        return plan.target.name.removeprefix(prefix)

    def _noise(self, plan: TensorPlan, *, is_matrix: bool) -> Noise | None:
        pieces = math.prod(max(strip.pieces for strip in dim.strips) for dim in plan.dims)
        perturbation, name = self.perturbation, self._seeding_name(plan)
        if perturbation is None or not perturbation.covers(name, self.prefixes):
            return None
        if perturbation.mode == "preserving" and pieces == 1:
            return None
        if perturbation.scale == "paper" and not is_matrix and any(map(_is_summed, plan.dims)):  # a readout
            return None
        return Noise(
            perturbation,
            name,
            plan.target.shape,
            is_matrix,
            _fan_in(plan),
            plan.parts[0][0],
            pieces * plan.name_pieces,
        )

    def _map_dims(self, spec: TensorSpec, layout: Layout, choice: Choice[Any], name: str) -> tuple[DimMap, ...]:
        if len(layout.dims) != len(spec.shape):
            raise choice.text.error(
                f"`{spec.name}` has {len(spec.shape)} dimensions {_shape(spec.shape)}, "
                f"but this layout has {len(layout.dims)}"
            )
        maps, fills, is_gain = [], self.fresh.fills(name), self.fresh.is_gain(name)
        segment_scale = self.fresh.segment_scale(name)
        for position, (dim, size) in enumerate(zip(layout.dims, spec.shape, strict=True)):
            if size == 0:
                raise PlanError(f"`{spec.name}` is empty: its shape is {_shape(spec.shape)}")
            try:
                maps.append(map_dim(dim, self.axes, size, fills, layout.powers, segment_scale, is_gain=is_gain))
            except LayoutError as problem:
                refs = axis_refs(Layout((dim,), (), 0, dim.span))
                keys = config_keys(
                    self.fresh.recipe, [ref.name for ref in refs if isinstance(ref, AxisRef)], self.values
                )
                sizes = ", ".join(f"{axis.name} = {axis.size}" for axis in self.axes.values() if axis.size is not None)
                stated = f"config.json sets {settings_text(keys)}; " if keys else ""
                raise choice.text.error(
                    f"`{spec.name}` has shape {_shape(spec.shape)}, but dimension {position}, "
                    f"`{_excerpt(choice.text.value, dim)}`, {problem}",
                    dim.span,
                    hint=f"{stated}check that config.json and the recipe belong to these tensors; {sizes}",
                ) from problem
        return tuple(maps)

    def _name_copies(self, plan: TensorPlan, match: Match) -> Iterable[TensorPlan]:
        """Yield one plan for each tensor that the source becomes by the axes in its name."""
        parts = match.rule.pattern.axes
        if not parts:
            yield plan
            return
        named = [self.axes[name] for part in parts for name in part.names]
        if all(axis.wide_size == axis.size and axis.factor == 1 for axis in named):
            for part in parts:
                self._digits(part, plan, match)
            yield plan
            return
        if math.prod(axis.factor for axis in named) > _MAX_TENSORS:
            raise PlanError(f"`{plan.source.name}` would become more than {_MAX_TENSORS} tensors")
        copies = [list(self._indices(part, plan, match)) for part in parts]
        contracted = [len(indices) if part.contracted else 1 for part, indices in zip(parts, copies, strict=True)]
        for chosen in itertools.product(*map(enumerate, copies)):
            piece = 0
            for part, (digit, _), pieces in zip(parts, chosen, contracted, strict=True):
                piece = piece * pieces + digit if part.contracted else piece
            name = expand_name(match.rule.pattern, match.groups, [index for _, index in chosen])
            counts = (math.prod(map(len, copies)), math.prod(contracted))
            if (plan.name_copies, plan.name_pieces) != counts:
                plan = replace(plan, name_copies=counts[0], name_pieces=counts[1])
            yield plan.renamed(plan.source, name, piece)

    def _indices(self, part: NameAxis, plan: TensorPlan, match: Match) -> Iterable[int]:
        """Yield the numbers in the names of a tensor's copies, given that its own counts the axes of `part`."""
        axes = [self.axes[name] for name in part.names]
        for axis in axes:
            if axis.factor > 1 and not self.method.is_copying:
                raise PlanError(
                    f"`--method {self.method.name}` cannot widen the axis `{axis.name}`, which counts tensors",
                    hint=f"keep its size with `--axis {axis.name}=1`, or use another method",
                )
        digits = self._digits(part, plan, match)
        for chosen in itertools.product(
            *(self._positions(axis, digit) for axis, digit in zip(axes, digits, strict=True))
        ):
            index = 0
            for axis, position in zip(axes, chosen, strict=True):
                index = index * (axis.wide_size or 1) + position
            yield index

    def _digits(self, part: NameAxis, plan: TensorPlan, match: Match) -> list[int]:
        """Return the unit of each axis of `part` that the number in a tensor's name counts."""
        rest, digits = int(match.groups[part.group]), []
        axes = [self.axes[name] for name in part.names]
        for axis in reversed(axes[1:]):
            if axis.size is None:
                raise match.rule.text.error(f"the axis `{axis.name}` has no single size, so it cannot count tensors")
            rest, digit = divmod(rest, axis.size)
            digits.append(digit)
        if axes[0].size is not None and rest >= axes[0].size:
            size = math.prod(axis.size or 1 for axis in axes)
            raise match.rule.text.error(
                f"`{plan.source.name}` has a number beyond the size of `{{{' '.join(part.names)}}}`, {size}"
            )
        return [rest, *reversed(digits)]

    def _positions(self, axis: Axis, unit: int) -> tuple[int, ...]:
        """Return the new numbers of a unit of an axis that counts tensors."""
        if axis.size is None:  # the copies of a unit stay together
            return tuple(range(unit * axis.factor, (unit + 1) * axis.factor))
        if axis.name not in self.counted:
            self.counted[axis.name] = axis.copy_map()
        return self.counted[axis.name].positions[unit]


def name_prefixes(recipe: Recipe) -> tuple[str, ...]:
    """Return the prefixes that names of tensors can have, longest first."""
    return tuple(
        sorted({value for words in recipe.prefixes for value in words.values() if value}, key=len, reverse=True)
    )


def _fan_in(plan: TensorPlan, *, wide: bool = True) -> int:
    """Return the number of elements that the layer sums for each output, 1 for an embedding table."""
    first, *others = plan.dims
    sizes = [dim.wide_size if wide else dim.size for dim in plan.dims]
    if _is_summed(first):  # stored as (inputs, outputs)
        return sizes[0] * math.prod(sizes[2:])
    is_summed = any(map(_is_summed, others))
    is_lookup = not is_summed and first.wide_size == first.size
    return 1 if is_lookup else math.prod(sizes[1:])


def _is_summed(dim: DimMap) -> bool:
    return any(digit.contracted or digit.averaged for strip in dim.strips for digit in strip.digits)


def _check_dtype(plan: TensorPlan) -> None:
    kind = DTYPES[plan.source.dtype].kind
    if kind == "float" or not (plan.is_changed or kind == "packed"):
        return
    if kind == "packed":
        raise PlanError(
            f"cannot widen `{plan.source.name}`: it is {plan.source.dtype}, whose scales are stored elsewhere",
            hint="dequantize the model to bfloat16 first; see `mupscale help limits`",
        )
    if plan.is_scaled:
        raise PlanError(
            f"cannot scale `{plan.source.name}`: it is {plan.source.dtype}, so its weights are packed as integers",
            hint="dequantize the model to bfloat16 first; see `mupscale help limits`",
        )


def _excerpt(text: str, dim: Dim) -> str:
    return text[slice(*dim.span)]


def _shape(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, shape))})"


def _share(tensors: Sequence[TensorSpec], position: int, count: int) -> Sequence[TensorSpec]:
    """Return one of `count` equal runs of tensors, in the order of the numbers in their names."""
    if count == 1:
        return tensors
    ordered = sorted(tensors, key=lambda spec: [int(number) for number in re.findall("[0-9]+", spec.name)])
    length = math.ceil(len(ordered) / count)
    return ordered[position * length : (position + 1) * length]


def _joined_size(tensors: Sequence[TensorSpec], position: int) -> int:
    """Return the size of a dimension along which tensors are joined."""
    if any(len(tensor.shape) <= position for tensor in tensors):
        raise LayoutError("has parts of unknown size")
    return sum(tensor.shape[position] for tensor in tensors)

"""What fresh units require of every tensor, so that the wide model computes the same function.

An axis that grows to a size that is not a multiple of its own gets fresh units, which copy none. What keeps them out of
the function follows from the layouts alone (page `theory`, "Any size"):

- Fresh units of the residual stream hold 0 or, under norms that subtract the mean, the mean of the others.
- Fresh units that attention multiplies over are 0 in keys and values.
- All other fresh units hold anything, and the layers that sum over them ignore them.
- A norm over fresh units divides by another number: its gain, its eps and what stands before it make up for that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Any

from mupscale_cli.architecture.expressions import look_up
from mupscale_cli.architecture.layouts import (
    AxisRef,
    Concatenation,
    Dim,
    Layout,
    Power,
    Product,
    Segment,
    axis_refs,
)
from mupscale_cli.architecture.matching import Match
from mupscale_cli.architecture.types import Choice, Recipe
from mupscale_cli.errors import PlanError, SizeError
from mupscale_cli.plan.conditions import Values
from mupscale_cli.plan.copies import Axis
from mupscale_cli.plan.dims import Fill, Fills
from mupscale_cli.plan.links import next_ratios

_BIASES = ("bias", "beta")  # ends of the names of biases


@dataclass(frozen=True)
class _Norm:
    """A norm, known by its gain or bias: the axes that it averages over, and the module in front of it."""

    kind: str
    axes: frozenset[str]
    of: str | None


@dataclass(frozen=True)
class FreshUnits:
    """What fresh units require of the tensors of a checkpoint.

    Attributes:
        recipe: recipe of the architecture.
        axes: every axis by name, with its growth.
        choices: chosen layout of each tensor by its name.
        eps: factor of the eps in each config key that changes.
    """

    recipe: Recipe
    axes: Mapping[str, Axis]
    choices: Mapping[str, Choice[Any]]
    eps: Mapping[str, Fraction]

    @cached_property
    def _is_needed(self) -> bool:
        return any(axis.filled != 1 for axis in self.axes.values())

    @cached_property
    def layouts(self) -> dict[str, Layout]:
        """The layouts of the tensors that have one."""
        return {name: choice.value for name, choice in self.choices.items() if isinstance(choice.value, Layout)}

    @cached_property
    def _norms(self) -> dict[str, _Norm]:
        """The norm of each gain and bias."""
        return {
            name: _Norm(
                layout.norm.kind,
                frozenset(ref.name for ref in _refs(layout.dims[-1])) - {layout.norm.per and layout.norm.per.name},
                layout.norm.of,
            )
            for name, layout in self.layouts.items()
            if layout.norm is not None and layout.dims
        }

    @cached_property
    def streams(self) -> dict[str, str]:
        """The residual streams, which norms without a module in front of them average over, with the kind of norm."""
        stated = {rule.name: rule.norm for rule in self.recipe.axes if rule.norm is not None}
        return {axis: norm.kind for norm in self._norms.values() if norm.of is None for axis in norm.axes} | stated

    @cached_property
    def _in_front(self) -> dict[str, list[_Norm]]:
        """The norms that follow directly on each tensor's module."""
        in_front: dict[str, dict[_Norm, None]] = {}
        of_module = {
            module: [name for name in self.layouts if f".{module}." in f".{name}"]
            for module in {norm.of for norm in self._norms.values()}
        }
        for name, norm in self._norms.items():
            if norm.of is None or name.endswith(_BIASES):
                continue
            scope, tensors = name, list[str]()
            while scope and not tensors:
                scope = scope.rpartition(".")[0]
                tensors = [other for other in of_module[norm.of] if other.startswith(f"{scope}." if scope else "")]
            if not tensors:
                choice = self.choices[name]
                raise choice.text.error(
                    f"`{name}` is the gain of a norm `of {norm.of}`, but the checkpoint has no such module",
                    self.layouts[name].norm.span,  # type: ignore[union-attr]
                )
            for other in tensors:  # several norms are alike if each head has its own
                in_front.setdefault(other, {})[norm] = None
        return {name: list(norms) for name, norms in in_front.items()}

    def in_front(self, name: str) -> tuple[_Norm, ...]:
        """Return the norms that follow directly on a tensor's module; its fresh units and factors depend on them."""
        return tuple(self._in_front.get(name, ()))

    def is_gain(self, name: str) -> bool:
        """Tell whether a tensor is the gain of a norm."""
        return name in self._norms and not name.endswith(_BIASES)

    # Scales -----------------------------------------------------------------------------------

    def scale(self, name: str, layout: Layout) -> float:
        """Return the factor of a tensor that makes up for the norms' larger number of units (page `theory`)."""
        return _root(self._square(name, layout)) if self._is_needed else 1.0

    def undone(self, name: str) -> float:
        """Return the part of a gain's factor that does not show in the output of the norm, since the norm undoes it."""
        return _root(self._filled(self._norms[name])) if self.is_gain(name) else 1.0

    def _square(self, name: str, layout: Layout) -> Fraction:
        norm = self._norms.get(name)
        square = Fraction(1)
        if norm is None:
            for stream in self.streams.keys() & {ref.name for ref in _refs(*layout.dims) if not ref.contracted}:
                square *= self._eps_factor([stream]) / self.axes[stream].filled
            for following in () if _no_norm_follows(layout.powers) else self._in_front.get(name, ()):
                if not following.axes <= self.streams.keys() and not _segments_of(layout, following.axes):
                    square *= self._in_front_square(following)
            return square
        if self.is_gain(name):
            square *= self._filled(norm)
        if norm.axes <= self.streams.keys():
            of_stream = self._eps_factor(norm.axes) / self._filled(norm)
            if norm.of is not None:  # its output goes into the stream
                square *= of_stream
            elif any(not power.of_size and power.exponent in {-1, 0} for power in layout.powers):
                square /= of_stream  # the readout that follows is the embedding, which has this factor
        return square

    def segment_scale(self, name: str) -> Callable[[Segment], float]:
        """Return the factor of each of a fused tensor's segments, which a norm may follow alone."""
        in_front = [norm for norm in self._in_front.get(name, ()) if not norm.axes <= self.streams.keys()]

        def scale(segment: Segment) -> float:
            if _no_norm_follows(segment.powers):
                return 1.0
            axes = {ref.name for ref in _refs(segment.dim) if not ref.contracted}
            return math.prod(_root(self._in_front_square(norm)) for norm in in_front if norm.axes <= axes)

        return scale

    def _in_front_square(self, norm: _Norm) -> Fraction:
        """Return the square of the factor of what a norm follows on."""
        return self._eps_factor(norm.axes) / self._filled(norm)

    def _filled(self, norm: _Norm) -> Fraction:
        return math.prod((self.axes[name].filled for name in norm.axes), start=Fraction(1))

    def _eps_factor(self, names: Iterable[str]) -> Fraction:
        """Return the factor of the eps of a norm over some axes: that of its config key, 1 if the code fixes it."""
        rules = {rule.name: rule for rule in self.recipe.axes}
        own = [rules[name].eps for name in names if rules[name].eps is not None]
        part = next((name.rpartition(".")[0] for name in names), None)  # a norm that is never widened has none
        shared = [rule.eps for rule in self.recipe.axes if rule.name.rpartition(".")[0] == part and rule.eps]
        keys = next((keys for keys in (*own, *shared)), None)
        return self.eps.get(keys[0], Fraction(1)) if isinstance(keys, tuple) else Fraction(1)

    # Fills ------------------------------------------------------------------------------------

    def fills(self, name: str) -> Fills:
        """Return what the fresh units of each axis hold in a tensor."""
        norm, in_front = self._norms.get(name), self._in_front.get(name, ())

        def fill(ref: AxisRef, powers: tuple[Power, ...]) -> Fill:
            axis = self.axes[ref.name]
            if not axis.fresh:
                return "zero"
            if norm is not None:
                return "zero" if name.endswith(_BIASES) else "init"
            if ref.name in self.streams:
                return "init" if ref.contracted else self._level(self.streams[ref.name])
            if ref.contracted:
                return "init" if axis.rotary else "zero"
            if _is_marked(ref.name, powers):
                return "init"
            kinds = [following.kind for following in in_front if ref.name in following.axes]
            if kinds:
                return self._level(kinds[0])
            return "zero" if axis.rotary else "init"

        return fill

    @staticmethod
    def _level(kind: str) -> Fill:
        """Return what fresh units hold in front of a norm, so that it gives them 0 and the others what it did."""
        return "mean" if kind == "layer" else "zero"

    # Limits -----------------------------------------------------------------------------------

    def check(self, matches: Mapping[str, Match]) -> None:
        """Check that the growth of every axis can keep the function.

        Raises:
            SizeError: nothing can do that, or the recipe does not say enough.
        """
        for axis in self.axes.values():
            if axis.fresh or axis.isometric:
                reason = next(self._obstacles(axis, matches), None)
                if reason is not None:
                    raise SizeError(
                        f"the axis `{axis.name}` cannot grow from {axis.size} to {axis.wide_size} units: {reason}",
                        hint=_alternative(axis),
                        instead=None if axis.isometric else next_ratios(self.recipe, self.axes, [axis.name]),
                        axis=axis.name,
                    )

    def _obstacles(self, axis: Axis, matches: Mapping[str, Match]) -> Iterator[str]:
        name = axis.name
        if axis.is_spread and axis.ratio.denominator != 1:
            yield "the frequencies of its units depend on its size, so it grows by whole factors"
        if axis.order == "adjacent":
            yield "the model joins tensors of several widths, each with all of its units, so it grows by whole factors"
        if any(name in part.names for match in matches.values() for part in match.rule.pattern.axes):
            yield "it counts tensors"
        yield from self._norm_obstacles(axis)
        with_axis = [
            (tensor, layout)
            for tensor, layout in self.layouts.items()
            if any(r.name == name for r in _refs(*layout.dims))
        ]
        for tensor, layout in with_axis:
            if len(layout.dims) == 1 and tensor.endswith(".weight") and tensor not in self._norms:
                yield f"the recipe `{self.recipe.name}` does not say what `{tensor}` normalizes (`rms` or `layer`)"
            if any(ref.averaged for ref in _refs(*layout.dims) if ref.name == name):
                yield f"the layer of `{tensor}` divides by its size"
        if name in self.streams or axis.rotary:
            return
        if not any(ref.contracted for _, layout in with_axis for ref in _refs(*layout.dims) if ref.name == name):
            yield "no layer sums over it, so no layer could ignore fresh units"
        part = name.rpartition(".")[0]
        says = any(rule.rotary for rule in self.recipe.axes if rule.name.rpartition(".")[0] == part)
        if not says and any(name in names and len(names) > 1 for _, layout in with_axis for names in _runs(layout)):
            yield f"the recipe `{self.recipe.name}` does not say which axis attention multiplies over (`rotary`)"

    def _norm_obstacles(self, axis: Axis) -> Iterator[str]:
        name = axis.name
        over = {tensor: norm for tensor, norm in self._norms.items() if name in norm.axes}
        for tensor, norm in over.items():
            if norm.kind == "layer" and norm.of is not None and name in self.streams:
                yield (
                    f"the output of a norm that subtracts the mean, `{tensor}`, is the residual stream, so a fresh "
                    "unit would have to hold the mean of all units, which differs from token to token"
                )
            if norm.kind == "layer" and axis.rotary == "pairs":
                yield f"the norm `{tensor}` subtracts the mean, which units between pairs do not keep"
            if len(norm.axes) > 1 and (norm.kind == "layer" or norm.of is None):
                yield f"the norm `{tensor}` averages over several axes"
        if name in self.streams and len({norm.kind for norm in over.values() if norm.of is None}) > 1:
            yield "some norms over it subtract the mean and others do not"

    def training_differences(self) -> dict[str, str]:
        """Return the axes whose growth makes training differ even if all fresh weights are 0, with the reasons."""
        reasons = {}
        for axis in self.axes.values():
            if axis.fresh and self.streams.get(axis.name) == "layer":
                reasons[axis.name] = "its fresh units hold the mean of the others, and their weights learn on their own"
            elif axis.fresh and self._shares_values(axis.name):
                reasons[axis.name] = "fresh query heads attend to existing values, so what reads them learns"
            elif axis.fresh and axis.sinusoidal:
                reasons[axis.name] = (
                    "its fresh units are sines and cosines of other frequencies, so what reads them learns"
                )
            elif axis.order == "tiled" and axis.ratio > 1:
                reasons[axis.name] = (
                    "layers read the first units by their number, so those get gradients that their copies do not"
                )
            elif axis.extra:
                reasons[axis.name] = (
                    f"some units have {axis.factor} and others {axis.factor + 1} copies, so only SGD and Muon take the "
                    "same steps, and only while the gains of norms are frozen"
                )
        return reasons

    def _shares_values(self, name: str) -> bool:
        """Return whether an axis counts query heads only: keys and values run over head dimensions without it."""
        projections = [layout for tensor, layout in self.layouts.items() if tensor not in self._norms]
        dims = [product for layout in projections for dim in layout.dims for product in _rows(dim)]
        heads = [names for names in dims if any(self.axes[other].rotary for other in names)]
        return any(name in names for names in heads) and not all(name in names for names in heads)


def isometric_axes(recipe: Recipe, axes: Mapping[str, Axis], choices: Mapping[str, Choice[Any]]) -> dict[str, Axis]:
    """Return the axes such that the residual streams grow isometrically, without fresh units.

    Args:
        recipe: recipe of the architecture.
        axes: every axis by name, with its growth.
        choices: chosen layout of each tensor by its name.

    Raises:
        PlanError: no residual stream grows, or its norms subtract the mean.
    """
    kinds = FreshUnits(recipe, axes, choices, {}).streams
    streams = {name: kind for name, kind in kinds.items() if axes[name].ratio > 1}
    if not streams:
        raise PlanError(
            "`--spread balanced` needs a residual stream under RMSNorm that grows, and there is none",
            hint="omit `--spread`; all other axes grow in the same way with and without it",
        )
    if "layer" in streams.values():
        name = next(name for name, kind in streams.items() if kind == "layer")
        raise PlanError(
            f"`--spread balanced` does not work under LayerNorm: the norms over `{name}` subtract the mean of all "
            "units, which changes if some have more copies than others",
            hint="omit `--spread`",
        )
    return {
        name: replace(axis, fresh=0, extra=axis.fresh, isometric=True) if name in streams else axis
        for name, axis in axes.items()
    }


def eps_factors(recipe: Recipe, axes: Mapping[str, Axis], values: Values) -> dict[str, Fraction]:
    """Return the factor of the eps in each config key that changes: the fraction of units that are copies.

    A key that several axes name belongs to a norm over all of them.

    Args:
        recipe: recipe of the architecture.
        axes: every axis by name, with its growth.
        values: names and values, as `environment` returns them.
    """
    factors: dict[str, Fraction] = {}
    for rule in recipe.axes:
        for key in rule.eps if isinstance(rule.eps, tuple) else ():
            if isinstance(look_up(key, values), (int, float)):
                factors[key] = factors.get(key, Fraction(1)) * axes[rule.name].filled
    return {key: factor for key, factor in factors.items() if factor != 1}


def _alternative(axis: Axis) -> str:
    """Suggest what to do about an axis that cannot grow as requested."""
    if axis.isometric:
        return "omit `--spread`"
    if axis.ratio.denominator == 1:
        return f"keep its size with `--axis {axis.name}=1`"
    return f"use a multiple, for instance `--axis {axis.name}={int(axis.ratio) + 1}`"


def _root(square: Fraction) -> float:
    return math.sqrt(square.numerator) / math.sqrt(square.denominator)


def _is_marked(name: str, powers: Iterable[Power]) -> bool:
    """Return whether a recipe marks what makes queries, whose fresh units are multiplied with 0."""
    return any(power.of_size and power.axis == name for power in powers)


def _refs(*dims: Dim) -> list[AxisRef]:
    """Return every mention of an axis in some dimensions."""
    return [ref for ref in axis_refs(Layout(dims, (), 0, (0, 0))) if isinstance(ref, AxisRef)]


def _no_norm_follows(powers: Iterable[Power]) -> bool:
    """Return whether `#a^0` marks a tensor or a segment as one that no norm behind its module reads."""
    return any(power.of_size and power.exponent == 0 for power in powers)


def _segments_of(layout: Layout, axes: frozenset[str]) -> bool:
    """Return whether a tensor is fused, and some of its segments run over axes."""
    segments = [segment for dim in layout.dims for segment in _segments(dim)]
    return any(axes <= {ref.name for ref in _refs(segment.dim)} for segment in segments)


def _segments(dim: Dim) -> Iterator[Segment]:
    match dim:
        case Product():
            for item in dim.items:
                yield from _segments(item)
        case Concatenation():
            yield from dim.segments


def _runs(layout: Layout) -> Iterator[set[str]]:
    """Yield the axes of each segment of each dimension."""
    for dim in layout.dims:
        yield from (*_rows(dim), *_rows(dim, contracted=True))


def _rows(dim: Dim, *, contracted: bool = False) -> list[set[str]]:
    """Return the axes of each segment of a dimension that a layer sums over, or does not."""
    match dim:
        case AxisRef():
            return [{dim.name}] if dim.contracted == contracted else []
        case Product():
            alternatives = [_rows(item, contracted=contracted) or [set()] for item in dim.items]
            combined: list[set[str]] = [set()]
            for options in alternatives:
                combined = [names | option for names in combined for option in options]
            return [names for names in combined if names]
        case Concatenation():
            return [names for segment in dim.segments for names in _rows(segment.dim, contracted=contracted)]
        case _:
            return []

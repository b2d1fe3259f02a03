"""Maps of dimensions: which element of the narrow tensor each element of the wide tensor copies.

A dimension is a sequence of strips. A strip is a mixed-radix counter whose digits are axes, so source and target of a
copy are strided views. Widening a tensor is one strided copy per combination of strips, for every architecture.
Pure Python, no tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import reduce
from typing import Literal

from mupscale_cli.architecture.layouts import AxisRef, Concatenation, Dim, Fixed, Power, Product, Segment
from mupscale_cli.plan.copies import Axis, CopyMap

Fill = Literal["zero", "mean", "init"]
# What the fresh units of an axis hold, given how the tensor runs over it and the powers that scale it there.
Fills = Callable[[AxisRef, tuple[Power, ...]], Fill]


class LayoutError(ValueError):
    """A dimension whose size contradicts its layout; the message completes a sentence about the dimension."""


@dataclass(frozen=True, slots=True)
class Digit:
    """An axis in a dimension.

    Attributes:
        units: copy map of the axis.
        contracted: whether the layer sums over the axis, so that copies share the element's value.
        stride: distance between two old units in the source, in elements of the dimension.
        wide_stride: distance between two new units in the target, in elements of the dimension.
        power: exponent p; the copies of a unit with n copies are multiplied by n ** p, in addition to sharing.
        averaged: whether the layer averages over the axis, so that copies keep the element's value.
        fill: what fresh units hold: `zero`, the `mean` of the copies, or initial weights (`init`). An element that is
            fresh along several axes is zero if one of them says so, else the mean, else initial.
    """

    units: CopyMap
    contracted: bool
    stride: int = 1
    wide_stride: int = 1
    power: float = 0.0
    averaged: bool = False
    fill: Fill = "zero"

    def outside(self, size: int, wide_size: int) -> Digit:
        """Return the digit in front of faster ones that span `size` source and `wide_size` target elements."""
        return replace(self, stride=self.stride * size, wide_stride=self.wide_stride * wide_size)


@dataclass(frozen=True, slots=True)
class Strip:
    """A part of a dimension that is a product of digits, slowest first, with its own scale.

    Attributes:
        offset: first element in the source.
        wide_offset: first element in the target.
        digits: the digits.
        scale: scale of the elements, in addition to the division by copies of summed axes.
        undone: the part of the scale that the layer undoes.
    """

    offset: int
    wide_offset: int
    digits: tuple[Digit, ...]
    scale: float = 1.0
    undone: float = 1.0

    @property
    def pieces(self) -> int:
        """Number of shares into which the layer's sum over this strip splits an element."""
        return math.prod(digit.units.copies for digit in self.digits if digit.contracted)

    @property
    def multiplicity(self) -> int:
        """Number of copies of an element along this dimension."""
        return math.prod(digit.units.copies for digit in self.digits)


@dataclass(frozen=True, slots=True)
class Region:
    """Strips that fill a contiguous part of a dimension and share their first `num_shared` digits.

    `[a + b]` consists of two regions with one strip each; `(kv [a + b])` is one region with two strips that share
    `kv`. Splitting a shared digit splits source and target into contiguous blocks.
    """

    strips: tuple[Strip, ...]
    num_shared: int
    size: int
    wide_size: int


@dataclass(frozen=True, slots=True)
class DimMap:
    """A dimension of a tensor before and after the widening."""

    size: int
    wide_size: int
    regions: tuple[Region, ...]

    @property
    def strips(self) -> tuple[Strip, ...]:
        return tuple(strip for region in self.regions for strip in region.strips)

    def with_digits(self, change: Callable[[Digit], Digit]) -> DimMap:
        """Return the map with every digit changed."""

        def changed(strip: Strip) -> Strip:
            return replace(strip, digits=tuple(map(change, strip.digits)))

        regions = (replace(region, strips=tuple(map(changed, region.strips))) for region in self.regions)
        return replace(self, regions=tuple(regions))


def power_scale(powers: tuple[Power, ...], axes: Mapping[str, Axis]) -> float:
    """Return the product of the powers of the axes' copies and size ratios; whole powers are multiplied exactly."""
    exponents: dict[tuple[str, Fraction], Fraction] = {}  # by axis and base: copies and size ratio are often equal
    for power in powers:
        axis = axes[power.axis]
        key = (power.axis, axis.ratio if power.of_size else Fraction(axis.repeats))
        exponents[key] = exponents.get(key, Fraction(0)) + power.exponent
    exact, others = Fraction(1), 1.0
    for (_, base), exponent in exponents.items():
        if exponent.denominator == 1:
            exact *= base**exponent.numerator
        else:
            others *= math.pow(base, exponent)
    return exact.numerator * others / exact.denominator


def solve_size(dim: Dim, axes: Mapping[str, Axis], size: int) -> tuple[set[str], int | None]:
    """Solve for the unknown size in a dimension.

    The size of a dimension is linear in the size of any one axis, `a + b x`. The size of a dimension therefore gives
    the size of `.` or of an axis whose size is not known yet.

    Args:
        dim: layout of the dimension.
        axes: every axis by name; unknown sizes are None.
        size: size of the dimension in the source, in elements.

    Returns:
        The names of the axes without a size (empty for `.`), and the solution; None if there is no unknown, or too
        many.

    Raises:
        LayoutError: the solution is not a whole number, or there is no unknown and the layout gives another size.
    """
    constant, slope, open_names = _linear(dim, axes)
    if slope == 0:
        if constant != size:
            raise LayoutError(f"should have size {constant} instead of {size}")
        return set(), None
    if slope is None or len(open_names) > 1:
        return open_names, None
    smallest = constant + slope if open_names else constant
    if size < smallest or (size - constant) % slope:
        raise LayoutError(f"cannot have size {size}")
    return open_names, (size - constant) // slope


def known_size(dim: Dim, axes: Mapping[str, Axis]) -> int | None:
    """Return the size of a dimension whose axes all have known sizes; None if one is not known."""
    constant, slope, _ = _linear(dim, axes)
    return constant if slope == 0 else None


def grown_size(dim: Dim, axes: Mapping[str, Axis], wide: Mapping[str, Axis], size: int) -> int:
    """Return the size of a dimension after its axes have other sizes.

    Args:
        dim: layout of the dimension.
        axes: every axis by name.
        wide: the same axes with their new sizes.
        size: size of the dimension, in elements.
    """
    _, unknown = solve_size(dim, axes, size)
    constant, slope, _ = _linear(dim, wide)
    return constant + (slope or 0) * (unknown or 0)


def _linear(dim: Dim, axes: Mapping[str, Axis]) -> tuple[int, int | None, set[str]]:
    """Return a and b of a dimension's size a + b x, b None if it is not linear, and the names of the unknown axes."""
    match dim:
        case Fixed():
            return (0, 1, set()) if dim.size is None else (dim.size, 0, set())
        case AxisRef():
            size = axes[dim.name].size
            return (0, 1, {dim.name}) if size is None else (size, 0, set())
        case Product():
            return reduce(_times, (_linear(item, axes) for item in dim.items))
        case Concatenation():
            return reduce(_plus, (_linear(segment.dim, axes) for segment in dim.segments))


_Linear = tuple[int, "int | None", set[str]]


def _plus(left: _Linear, right: _Linear) -> _Linear:
    slope = None if left[1] is None or right[1] is None else left[1] + right[1]
    return left[0] + right[0], slope, left[2] | right[2]


def _times(left: _Linear, right: _Linear) -> _Linear:
    names = left[2] | right[2]
    if left[1] is None or right[1] is None or (left[1] and right[1]):
        return 0, None, names
    return left[0] * right[0], left[0] * right[1] + left[1] * right[0], names


def all_zero(_ref: AxisRef, _powers: tuple[Power, ...]) -> Fill:
    """Fill every fresh unit with zeros."""
    return "zero"


def map_dim(
    dim: Dim,
    axes: Mapping[str, Axis],
    size: int,
    fills: Fills = all_zero,
    powers: tuple[Power, ...] = (),
    segment_scale: Callable[[Segment], float] = lambda _: 1.0,
    *,
    is_gain: bool = False,
) -> DimMap:
    """Map a dimension of a tensor.

    Args:
        dim: layout of the dimension in the recipe.
        axes: every axis by name, with its factor; its size is None if it differs between tensors.
        size: size of the dimension in the source, in elements.
        fills: what the fresh units of each axis hold.
        powers: powers that scale the whole tensor, for `fills`.
        segment_scale: factor of each segment, in addition to its powers.
        is_gain: whether the tensor multiplies units that are scaled already, as the gain of a norm does.

    Raises:
        LayoutError: the size contradicts the axes, or does not determine all sizes.
    """
    names, open_size = solve_size(dim, axes, size)
    if names and open_size is None:
        raise LayoutError(f"does not determine the sizes of {', '.join(sorted(names))}")
    regions, offset, wide_offset = [], 0, 0
    for part in _Builder(axes, open_size, fills, powers, segment_scale, is_gain).parts(dim):
        regions.append(part.shifted(offset, wide_offset).region())
        offset, wide_offset = offset + part.size, wide_offset + part.wide_size
    return DimMap(offset, wide_offset, tuple(regions))


def keep_dims(shape: Iterable[int]) -> tuple[DimMap, ...]:
    """Return the maps of a tensor that is copied unchanged; it may be empty."""
    strips = [(size, Strip(0, 0, (Digit(CopyMap(size), contracted=False),))) for size in shape]
    return tuple(DimMap(size, size, (Region((strip,), 1, size, size),)) for size, strip in strips)


@dataclass(frozen=True, slots=True)
class _Part:
    size: int
    wide_size: int
    strips: tuple[Strip, ...]
    num_shared: int

    def shifted(self, offset: int, wide_offset: int, scale: float = 1.0) -> _Part:
        strips = (
            replace(
                strip,
                offset=strip.offset + offset,
                wide_offset=strip.wide_offset + wide_offset,
                scale=strip.scale * scale,
            )
            for strip in self.strips
        )
        return replace(self, strips=tuple(strips))

    def region(self) -> Region:
        shared = self.num_shared
        merged = [(_merge(strip.digits[:shared]), _merge(strip.digits[shared:])) for strip in self.strips]
        strips = tuple(
            replace(strip, digits=head + tail) for strip, (head, tail) in zip(self.strips, merged, strict=True)
        )
        return Region(strips, len(merged[0][0]), self.size, self.wide_size)


@dataclass(frozen=True, slots=True)
class _Builder:
    axes: Mapping[str, Axis]
    open_size: int | None
    fills: Fills
    powers: tuple[Power, ...]
    segment_scale: Callable[[Segment], float]
    is_gain: bool

    def parts(self, dim: Dim) -> list[_Part]:
        """Map the parts of a dimension that lie one after another."""
        match dim:
            case Concatenation():
                return [part for part in map(self.segment, dim.segments) if part.size]  # a segment `.` may be absent
            case AxisRef() if self.axes[dim.name].isometric:
                return list(self._isometric(dim, self.axes[dim.name]))
            case _:
                return [self.part(dim)]

    def part(self, dim: Dim) -> _Part:
        match dim:
            case Fixed():
                return self._atom(Digit(CopyMap(self.open_size if dim.size is None else dim.size), False))  # type: ignore[arg-type]
            case AxisRef():
                axis = self.axes[dim.name]
                if axis.isometric:
                    return self._joined(self.parts(dim))
                fill = self.fills(dim, self.powers)
                digits = axis.digits(self.open_size if axis.size is None else axis.size)  # type: ignore[arg-type]
                atoms = (self._atom(Digit(units, dim.contracted, averaged=dim.averaged, fill=fill)) for units in digits)
                return reduce(self._times, atoms)
            case Product():
                return reduce(lambda inner, outer: self._times(outer, inner), map(self.part, reversed(dim.items)))
            case Concatenation():
                return self._joined(self.parts(dim))

    def _isometric(self, ref: AxisRef, axis: Axis) -> Iterator[_Part]:
        """Map the units with k and those with k + 1 copies: n copies share what is sqrt(n) times as large."""
        for units in axis.runs(self.open_size if axis.size is None else axis.size):  # type: ignore[arg-type]
            root = math.sqrt(units.copies)
            part = self._atom(Digit(units, ref.contracted, averaged=ref.averaged))
            scale, undone = (1.0, root) if self.is_gain else (root if ref.contracted else 1 / root, 1.0)
            yield replace(part, strips=(replace(part.strips[0], scale=scale, undone=undone),))

    def segment(self, segment: Segment) -> _Part:
        """Map a segment, whose own powers scale it in addition to those of the whole tensor."""
        part = replace(self, powers=(*self.powers, *segment.powers)).part(segment.dim)
        return part.shifted(0, 0, power_scale(segment.powers, self.axes) * self.segment_scale(segment))

    @staticmethod
    def _atom(digit: Digit) -> _Part:
        return _Part(digit.units.size, digit.units.wide_size, (Strip(0, 0, (digit,)),), num_shared=1)

    def _times(self, outer: _Part, inner: _Part) -> _Part:
        strips = tuple(
            Strip(
                slow.offset * inner.size + fast.offset,
                slow.wide_offset * inner.wide_size + fast.wide_offset,
                tuple(digit.outside(inner.size, inner.wide_size) for digit in slow.digits) + fast.digits,
                slow.scale * fast.scale,
                slow.undone * fast.undone,
            )
            for slow in outer.strips
            for fast in inner.strips
        )
        shared = len(outer.strips[0].digits) + inner.num_shared if len(outer.strips) == 1 else 0
        return _Part(outer.size * inner.size, outer.wide_size * inner.wide_size, strips, shared)

    @staticmethod
    def _joined(parts: Iterable[_Part]) -> _Part:
        strips: list[Strip] = []
        size = wide_size = 0
        for part in parts:
            strips += part.shifted(size, wide_size).strips
            size, wide_size = size + part.size, wide_size + part.wide_size
        return _Part(size, wide_size, tuple(strips), num_shared=0)


def _merge(digits: tuple[Digit, ...]) -> tuple[Digit, ...]:
    """Merge adjacent digits that are copied unchanged and are contiguous in source and target."""
    merged: list[Digit] = []
    for digit in digits:
        last = merged[-1] if merged else None
        if last and _is_unchanged(last) and _is_unchanged(digit) and _are_contiguous(last, digit):
            units = CopyMap(last.units.size * digit.units.size)
            merged[-1] = Digit(units, False, digit.stride, digit.wide_stride)
        else:
            merged.append(digit)
    return tuple(merged)


def _is_unchanged(digit: Digit) -> bool:
    return digit.units.is_identity


def _are_contiguous(outer: Digit, inner: Digit) -> bool:
    """Return whether one step of the outer digit spans exactly the units of the inner one."""
    size = inner.units.size
    return outer.stride == size * inner.stride and outer.wide_stride == size * inner.wide_stride

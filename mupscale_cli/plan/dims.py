"""Layouts made concrete: which element of the wide tensor copies which element of the narrow one.

A dimension is a sum of strips, a strip a mixed-radix counter whose digits are axes. Both sides of
the copy are then strided views, and widening a tensor is one strided copy for each combination of
strips, whatever the architecture. Pure Python, no tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import reduce

from mupscale_cli.architecture.layouts import AxisRef, Concatenation, Dim, Fixed, Power, Product
from mupscale_cli.plan.copies import Axis, CopyMap


class LayoutError(ValueError):
    """A dimension whose size is not what its layout says."""


@dataclass(frozen=True, slots=True)
class Digit:
    """One axis inside a dimension.

    Attributes:
        units: the axis' units and their copies.
        contracted: the layer sums over the axis, so the copies share the element's value.
        stride: distance between two old units in the source, in elements of the dimension.
        wide_stride: distance between two new units in the target.
        power: copies of a unit that has n of them are multiplied by n ** power; beside what is summed over.
        averaged: the layer sums over the axis and divides by its size itself, so that copies are whole.
    """

    units: CopyMap
    contracted: bool
    stride: int = 1
    wide_stride: int = 1
    power: float = 0.0
    averaged: bool = False

    def inside(self, stride: int, wide_stride: int) -> Digit:
        """The same digit in front of others that span `stride` and `wide_stride` elements."""
        return replace(self, stride=self.stride * stride, wide_stride=self.wide_stride * wide_stride)


@dataclass(frozen=True, slots=True)
class Strip:
    """A part of a dimension that is a pure product of digits, slowest first, with its own scale."""

    offset: int
    wide_offset: int
    digits: tuple[Digit, ...]
    scale: float = 1.0

    @property
    def pieces(self) -> int:
        """Into how many shares the layer's sum over this strip splits one element."""
        return math.prod(digit.units.copies for digit in self.digits if digit.contracted)

    @property
    def multiplicity(self) -> int:
        """How many copies of one element there are along this dimension."""
        return math.prod(digit.units.copies for digit in self.digits)


@dataclass(frozen=True, slots=True)
class Region:
    """Strips that fill one contiguous part of a dimension and share their first `num_shared` digits.

    `[a + b]` is two regions of one strip; `(kv [a + b])` is one region whose two strips share `kv`.
    Cutting a shared digit cuts source and target into contiguous blocks.
    """

    strips: tuple[Strip, ...]
    num_shared: int
    size: int
    wide_size: int


@dataclass(frozen=True, slots=True)
class DimMap:
    """One dimension of a tensor before and after."""

    size: int
    wide_size: int
    regions: tuple[Region, ...]

    @property
    def strips(self) -> tuple[Strip, ...]:
        return tuple(strip for region in self.regions for strip in region.strips)


def power_scale(powers: tuple[Power, ...], axes: Mapping[str, Axis]) -> float:
    """The product of factor(axis) ** exponent: exact where it is a whole number or its inverse."""
    exact = math.prod(axes[power.axis].factor for power in powers if power.exponent == 1)
    inverse = math.prod(axes[power.axis].factor for power in powers if power.exponent == -1)
    others = math.prod(
        math.pow(axes[power.axis].factor, power.exponent) for power in powers if abs(power.exponent) != 1
    )
    return exact * others / inverse


def solve_size(dim: Dim, axes: Mapping[str, Axis], size: int) -> tuple[set[str], int | None]:
    """Find the one size that a dimension leaves open.

    The size of a dimension is linear in any one axis: `a + b x`. So an axis without a size (read
    off the shapes, or varying from place to place) and `.` follow from the size of the dimension.

    Returns:
        The names of the axes left open (empty for `.`), and their size; None where nothing is open,
        or too much to be solved.

    Raises:
        LayoutError: no whole size fits, or the sizes that are known do not give `size`.
    """
    constant, slope, open_names = _linear(dim, axes)
    if slope == 0:
        if constant != size:
            raise LayoutError(f"is {constant}, not {size}")
        return set(), None
    if slope is None or len(open_names) > 1:
        return open_names, None
    if size <= constant or (size - constant) % slope:
        raise LayoutError(f"of size {size} cannot be divided that way")
    return open_names, (size - constant) // slope


def size_of(dim: Dim, axes: Mapping[str, Axis]) -> int:
    """The size of a dimension of which nothing is open.

    Raises:
        LayoutError: something is.
    """
    constant, slope, _ = _linear(dim, axes)
    if slope != 0:
        raise LayoutError("has parts whose size nothing tells")
    return constant


def _linear(dim: Dim, axes: Mapping[str, Axis]) -> tuple[int, int | None, set[str]]:
    """Constant and slope of a dimension's size in what is open, and the names that are open."""
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
        return 0, None, names  # not linear
    return left[0] * right[0], left[0] * right[1] + left[1] * right[0], names


def map_dim(dim: Dim, axes: Mapping[str, Axis], size: int) -> DimMap:
    """The map of one dimension of a tensor.

    Args:
        dim: what the recipe says of it.
        axes: the axes by name, with factors; sizes may be None where they vary.
        size: the dimension's size in the source.

    Raises:
        LayoutError: the size contradicts the axes.
    """
    names, open_size = solve_size(dim, axes, size)
    if names and open_size is None:
        raise LayoutError(f"leaves the sizes of {', '.join(sorted(names))} open")
    builder = _Builder(axes, open_size)
    if not isinstance(dim, Concatenation):
        part = builder.part(dim)
        return DimMap(part.size, part.wide_size, (part.region(),))
    part = builder.part(dim)
    regions, offset, wide_offset = [], 0, 0
    for segment in dim.segments:
        inner = builder.part(segment.dim).moved(offset, wide_offset, power_scale(segment.powers, axes))
        regions.append(inner.region())
        offset, wide_offset = offset + inner.size, wide_offset + inner.wide_size
    return DimMap(part.size, part.wide_size, tuple(regions))


def keep_dims(shape: Iterable[int]) -> tuple[DimMap, ...]:
    """The maps of a tensor that is copied as it is; it may be empty."""
    strips = [(size, Strip(0, 0, (Digit(CopyMap(size), contracted=False),))) for size in shape]
    return tuple(DimMap(size, size, (Region((strip,), 1, size, size),)) for size, strip in strips)


@dataclass(frozen=True, slots=True)
class _Part:
    size: int
    wide_size: int
    strips: tuple[Strip, ...]
    num_shared: int

    def moved(self, offset: int, wide_offset: int, scale: float) -> _Part:
        strips = tuple(
            Strip(strip.offset + offset, strip.wide_offset + wide_offset, strip.digits, strip.scale * scale)
            for strip in self.strips
        )
        return replace(self, strips=strips)

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

    def part(self, dim: Dim) -> _Part:
        match dim:
            case Fixed():
                return self._atom(CopyMap(self.open_size if dim.size is None else dim.size), False)  # type: ignore[arg-type]
            case AxisRef():
                axis = self.axes[dim.name]
                units = axis.copy_map(self.open_size if axis.size is None else axis.size)
                return self._atom(units, dim.contracted, averaged=dim.averaged)
            case Product():
                return reduce(lambda inner, outer: self._times(outer, inner), map(self.part, reversed(dim.items)))
            case Concatenation():
                return self._concatenation(dim)

    def _atom(self, units: CopyMap, contracted: bool, *, averaged: bool = False) -> _Part:
        digit = Digit(units, contracted, averaged=averaged)
        return _Part(units.size, units.wide_size, (Strip(0, 0, (digit,)),), num_shared=1)

    def _times(self, outer: _Part, inner: _Part) -> _Part:
        strips = tuple(
            Strip(
                slow.offset * inner.size + fast.offset,
                slow.wide_offset * inner.wide_size + fast.wide_offset,
                tuple(digit.inside(inner.size, inner.wide_size) for digit in slow.digits) + fast.digits,
                slow.scale * fast.scale,
            )
            for slow in outer.strips
            for fast in inner.strips
        )
        shared = len(outer.strips[0].digits) + inner.num_shared if len(outer.strips) == 1 else 0
        return _Part(outer.size * inner.size, outer.wide_size * inner.wide_size, strips, shared)

    def _concatenation(self, dim: Concatenation) -> _Part:
        strips: list[Strip] = []
        size = wide_size = 0
        for segment in dim.segments:
            part = self.part(segment.dim).moved(size, wide_size, power_scale(segment.powers, self.axes))
            strips += part.strips
            size, wide_size = size + part.size, wide_size + part.wide_size
        return _Part(size, wide_size, tuple(strips), num_shared=0)


def _merge(digits: tuple[Digit, ...]) -> tuple[Digit, ...]:
    """Neighbours that are copied as they stand, and lie end to end, become one digit."""
    merged: list[Digit] = []
    for digit in digits:
        last = merged[-1] if merged else None
        if last and _is_kept(last) and _is_kept(digit) and _is_around(last, digit):
            units = CopyMap(last.units.size * digit.units.size)
            merged[-1] = Digit(units, False, digit.stride, digit.wide_stride)
        else:
            merged.append(digit)
    return tuple(merged)


def _is_kept(digit: Digit) -> bool:
    return digit.units.copies == 1 and digit.units.is_regular


def _is_around(outer: Digit, inner: Digit) -> bool:
    """Whether a step of the outer digit is all the units of the inner one, and nothing beside them."""
    size = inner.units.size
    return outer.stride == size * inner.stride and outer.wide_stride == size * inner.wide_stride

"""Widening the elements of a tensor: scaling, splitting over summed axes, copying. Pure functions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from mupscale_cli.dtypes import DType
from mupscale_cli.engine.splitting import INTEGERS, Shares, Splits, give_first, split, split_exactly
from mupscale_cli.plan.copies import FRESH, CopyMap
from mupscale_cli.plan.dims import Digit, DimMap, Strip

_UNSIGNED = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32}
MEAN_UNITS = 256  # units that are added pairwise
_MAX_SINGLE_COPIES = 64  # copies written one at a time; more are broadcast (`tests/benchmarks/throughput.py`)


def element_dtype(dtype: DType) -> torch.dtype:
    """Return the torch type in which a tensor is expanded; types that are only copied become integers of their size."""
    return dtype.torch if dtype.kind == "float" else INTEGERS[dtype.size]


def scale_elements(values: Tensor, scale: float, offset: int) -> Tensor:
    """Return `scale * (offset + values) - offset`, rounded once to the type of `values`."""
    if scale == 1:
        return values
    if offset == 0 and float(torch.tensor(scale, dtype=values.dtype)) == scale:
        return values * scale  # the scale is a number of the type, so the product is rounded only once
    if offset == 0:
        return (values.to(torch.float64) * scale).to(values.dtype)  # adding 0 would lose the sign of -0
    return ((values.to(torch.float64) + offset) * scale - offset).to(values.dtype)


def effective_elements(values: Tensor, scale: float, offset: int) -> Tensor:
    """Return the values that the scaled and rounded elements represent exactly, in float64.

    They equal `values` if the scale is a power of two and there is no offset.
    """
    if scale == 1:
        return values.to(torch.float64)
    return (scale_elements(values, scale, offset).to(torch.float64) + offset) / scale - offset


def expand(
    source: Tensor,
    target: Tensor,
    strips: Sequence[Sequence[Strip]],
    *,
    scale: float = 1.0,
    offset: int = 0,
    piece: int = 0,
    num_pieces: int = 1,
    first_only: bool = False,
    fresh: float = 0.0,
) -> None:
    """Fill `target` with the widened elements of `source`: W' = c R(W) (page `theory`).

    Args:
        source: contiguous, of the narrow shape.
        target: contiguous, of the wide shape and the same type; every element is written.
        strips: strips of each dimension.
        scale: scale of the whole tensor, on top of the strips' scales and the division over summed axes.
        offset: o, if the layer uses o + w.
        piece: index of this tensor if `num_pieces` tensors split each element among them.
        num_pieces: number of tensors that split each element.
        first_only: whether the first share takes the whole element and the others are zero.
        fresh: value of elements that copy none, unless they are to hold the mean of those that do.
    """
    if is_regular(strips):
        how = give_first if first_only else split
        if any(digit.units.num_fresh for dim in strips for strip in dim for digit in strip.digits):
            target.fill_(fresh)
        _expand_strided(source, target, strips, scale, offset, piece, num_pieces, how)
    else:
        how = give_first if first_only else split_exactly
        _expand_indexed(source, target, strips, scale, offset, piece, num_pieces, how, fresh)


def is_regular(strips: Sequence[Sequence[Strip]]) -> bool:
    """Return whether strided views can address all copies.

    Args:
        strips: strips of each dimension.
    """
    return all(digit.units.is_regular for dim in strips for strip in dim for digit in strip.digits)


def share_views(target: Tensor, strips: Sequence[Sequence[Strip]]) -> list[list[Tensor]]:
    """Return views that cover a widened tensor: for each combination of strips, one view per share, in order.

    The shares of an element have the same index in their views.

    Args:
        target: contiguous, of the wide shape.
        strips: strips of each dimension; must be regular.
    """
    views = []
    for combination in itertools.product(*strips):
        pairs = list(zip(combination, target.stride(), strict=True))
        digits = [digit.outside(1, stride) for strip, stride in pairs for digit in strip.digits]
        start = int(target.storage_offset()) + sum(strip.wide_offset * stride for strip, stride in pairs)
        places = _places(target, start, digits)
        copies = (range(digit.units.copies) for digit in digits if digit.contracted and digit.units.copies > 1)
        views.append([_select(places, digits, chosen) for chosen in itertools.product(*copies)])
    return views


def _expand_strided(
    source: Tensor,
    target: Tensor,
    strips: Sequence[Sequence[Strip]],
    scale: float,
    offset: int,
    piece: int,
    num_pieces: int,
    split: Callable[[Tensor, int], Splits],
) -> None:
    """Expand regular maps with one strided copy for each combination of strips."""
    strides, wide_strides = source.stride(), target.stride()
    for combination in itertools.product(*strips):
        digits = [
            digit.outside(stride, wide_stride)
            for strip, stride, wide_stride in zip(combination, strides, wide_strides, strict=True)
            for digit in strip.digits
        ]
        start = int(source.storage_offset()) + sum(
            strip.offset * stride for strip, stride in zip(combination, strides, strict=True)
        )
        wide_start = int(target.storage_offset()) + sum(
            strip.wide_offset * stride for strip, stride in zip(combination, wide_strides, strict=True)
        )
        values = source.as_strided([d.units.size for d in digits], [d.stride for d in digits], start)
        part_scale = scale * math.prod(strip.scale for strip in combination)
        scaled = scale_elements(values, part_scale, offset)
        _copy(scaled, target, wide_start, digits, piece, num_pieces, split)
        for position, digit in enumerate(digits):
            if digit.fill == "mean" and digit.units.num_fresh:
                units = torch.split(values.movedim(position, 0), MEAN_UNITS)
                mean = mean_of_units(units, digit.units.size).unsqueeze(position)
                mean = scale_elements(mean.to(values.dtype), part_scale, offset)
                for start, fresh in _fresh_digits(digit):
                    around = [*digits[:position], fresh, *digits[position + 1 :]]
                    _copy(mean, target, wide_start + start, around, piece, num_pieces, split)


def mean_of_units(units: Iterable[Tensor], count: int) -> Tensor:
    """Return the mean over the first dimension, in float64, added in an order that does not depend on the machine.

    Args:
        units: consecutive runs of `MEAN_UNITS` units; the last one may be shorter.
        count: number of all units.
    """
    total: Tensor | float = 0.0
    for run in units:
        sums = run.to(torch.float64)
        while len(sums) > 1:
            half = len(sums) // 2
            sums = torch.cat((sums[:half] + sums[half : 2 * half], sums[2 * half :]))
        total = total + sums[0]
    return torch.as_tensor(total) / count


def _fresh_digits(digit: Digit) -> Iterator[tuple[int, Digit]]:
    """Yield digits that copy a single unit to all fresh units, each with the distance of its first copy."""
    units, step = digit.units, digit.wide_stride
    if units.order != "spread":
        yield units.size * units.copies * step, replace(digit, units=CopyMap(1, units.num_fresh))
        return
    for turn in range(1, units.unit_step):
        copies = CopyMap(1, units.size)
        yield turn * step, replace(digit, units=copies, wide_stride=units.unit_step * step)


def _expand_indexed(
    source: Tensor,
    target: Tensor,
    strips: Sequence[Sequence[Strip]],
    scale: float,
    offset: int,
    piece: int,
    num_pieces: int,
    split: Callable[[Tensor, Tensor], Shares],
    fresh: float,
) -> None:
    """Expand any map by looking up, for every target index of every dimension, its source index and its share."""
    values, scales = source, torch.ones((), dtype=torch.float64)
    number, total = torch.tensor(piece), torch.tensor(num_pieces)
    is_fresh = torch.tensor(False)
    for position, (dim, size) in enumerate(zip(strips, target.shape, strict=True)):
        index = dim_index(dim, size)
        values = values.index_select(position, index.source)
        along = [-1 if other == position else 1 for other in range(target.dim())]
        scales = scales * index.scale.view(along)
        number = number * index.num_shares.view(along) + index.share.view(along)
        total = total * index.num_shares.view(along)
        is_fresh = is_fresh | index.is_fresh.view(along)
    if scale != 1 or bool((scales != 1).any()):
        values = ((values.to(torch.float64) + offset) * (scale * scales) - offset).to(values.dtype)
    if bool((total > 1).any()):
        shares = split(values, total)
        values = torch.where(number < shares.num_neighbors, shares.neighbor, shares.nearest)
    if bool(is_fresh.any()):
        values = values.masked_fill(is_fresh, fresh)
    target.copy_(values)


def source_units(dim: DimMap) -> Tensor:
    """Return the old index that each new index of a dimension copies, or `FRESH`; shape (wide_size,)."""
    index = dim_index(dim.strips, dim.wide_size)
    return index.source.masked_fill(index.is_fresh, FRESH)


@dataclass(frozen=True, slots=True)
class DimIndex:
    """The map of a dimension, element by element. Each tensor has the wide size.

    Attributes:
        source: source element that each target element copies.
        group: first target element among those that share the same source element.
        num_shares: number of elements that share it.
        share: index of this element among them.
        scale: scale of the element, on top of the division among shares.
        is_fresh: whether the element copies none.
    """

    source: Tensor
    group: Tensor
    num_shares: Tensor
    share: Tensor
    scale: Tensor
    is_fresh: Tensor


def dim_index(strips: Sequence[Strip], wide_size: int) -> DimIndex:
    """Build the index of a dimension.

    Args:
        strips: strips that cover the dimension, or a block of it.
        wide_size: number of target elements.
    """
    integers = [torch.zeros(wide_size, dtype=torch.int64) for _ in range(4)]
    scale, is_fresh = torch.ones(wide_size, dtype=torch.float64), torch.zeros(wide_size, dtype=torch.bool)
    for strip in strips:
        place, *parts = _strip_index(strip)
        for whole, part in zip((*integers, scale, is_fresh), parts, strict=True):
            whole[place] = part
    source, group, num_shares, share = integers
    return DimIndex(source, group, num_shares, share, scale, is_fresh)


def _strip_index(strip: Strip) -> list[Tensor]:
    """Return the target index of each element of a strip, followed by the fields of `DimIndex`."""
    place, source, group = (torch.tensor([start]) for start in (strip.wide_offset, strip.offset, strip.wide_offset))
    num_shares, share = torch.ones(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    scale, is_fresh = torch.full((1,), strip.scale, dtype=torch.float64), torch.zeros(1, dtype=torch.bool)
    for digit in strip.digits:
        unit, first, count, number = _unit_index(digit.units)
        new = torch.arange(digit.units.wide_size)
        place = _outer(place, new * digit.wide_stride)
        source = _outer(source, unit.clamp_min(0) * digit.stride)
        is_fresh = _outer(is_fresh, unit == FRESH)
        group = _outer(group, (first if digit.contracted else new) * digit.wide_stride)
        counted, numbered = (count, number) if digit.contracted else (torch.ones_like(new), torch.zeros_like(new))
        share = _times(share, counted) + _times(torch.ones_like(share), numbered)
        num_shares = _times(num_shares, counted)
        scale = _times(scale, count.double() ** digit.power)
    return [place, source, group, num_shares, share, scale, is_fresh]


def _outer(slow: Tensor, fast: Tensor) -> Tensor:
    """Return all sums (for flags: disjunctions) of an outer and an inner value; the inner index varies fastest."""
    pairs = slow[:, None] | fast if slow.dtype == torch.bool else slow[:, None] + fast
    return pairs.flatten()


def _times(slow: Tensor, fast: Tensor) -> Tensor:
    return (slow[:, None] * fast).flatten()


@lru_cache(maxsize=64)
def _unit_index(units: CopyMap) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return, for each target unit: its source, the source's first copy, the number of copies, and this one's index."""
    first, count, number = [0] * units.wide_size, [1] * units.wide_size, [0] * units.wide_size
    for copies in units.positions:
        for place, position in enumerate(copies):
            first[position], count[position], number[position] = copies[0], len(copies), place
    for position in units.fresh:
        first[position] = position
    return torch.tensor(units.all_sources), torch.tensor(first), torch.tensor(count), torch.tensor(number)


def effective_source(
    source: Tensor, strips: Sequence[Sequence[Strip]], *, scale: float = 1.0, offset: int = 0
) -> Tensor:
    """Return the narrow tensor, in float64, that the widened and rounded one represents exactly.

    Args:
        source: contiguous, of the narrow shape and the stored type.
        strips: strips of each dimension.
        scale: scale of the whole tensor.
        offset: o, if the layer uses o + w.
    """
    result = torch.empty(source.shape, dtype=torch.float64)
    strides = result.stride()
    for combination in itertools.product(*strips):
        pairs = list(zip(combination, strides, strict=True))
        sizes = [digit.units.size for strip, _ in pairs for digit in strip.digits]
        steps = [digit.stride * stride for strip, stride in pairs for digit in strip.digits]
        start = sum(strip.offset * stride for strip, stride in pairs)
        part_scale = scale * math.prod(strip.scale for strip in combination)
        values = effective_elements(
            source.as_strided(sizes, steps, source.storage_offset() + start), part_scale, offset
        )
        result.as_strided(sizes, steps, start).copy_(values)
    return result


def _copy(
    values: Tensor,
    target: Tensor,
    start: int,
    digits: Sequence[Digit],
    piece: int,
    num_pieces: int,
    split: Callable[[Tensor, int], Splits],
) -> None:
    """Copy elements or their shares to all their positions in the target."""
    summed = [digit for digit in digits if digit.contracted and digit.units.copies > 1]
    inner_pieces = math.prod(digit.units.copies for digit in summed)
    total = inner_pieces * num_pieces
    shares = split(values, total) if total > 1 else None
    if shares is None or shares.are_equal:
        _copy_to(target, start, values if shares is None else shares.share(0), digits)
        return
    places = _places(target, start, digits)
    for copies in itertools.product(*(range(digit.units.copies) for digit in summed)):
        index = piece
        for copy, digit in zip(copies, summed, strict=True):
            index = index * digit.units.copies + copy
        share = _spread(shares.share(index), digits)
        _select(places, digits, copies).copy_(_select(share, digits, (0,) * len(copies)))


def _copy_to(target: Tensor, start: int, values: Tensor, digits: Sequence[Digit]) -> None:
    """Copy elements to all their positions."""
    if digits and _copy_as_wider(target, start, values, digits):
        return
    places, spread = _places(target, start, digits), _spread(values, digits)
    copies = [range(digit.units.copies) for digit in digits]
    if math.prod(map(len, copies)) > _MAX_SINGLE_COPIES:
        places.copy_(spread)
        return
    for chosen in itertools.product(*copies):  # one at a time, since torch is slow when the innermost stride is 0
        to = tuple(part for copy in chosen for part in (slice(None), copy))
        places[to].copy_(spread[(slice(None), 0) * len(digits)])


def _copy_as_wider(target: Tensor, start: int, values: Tensor, digits: Sequence[Digit]) -> bool:
    """Write adjacent copies as one wider integer: the element's bits times 1 + 2^bits + 2^(2 bits) + ...

    Returns:
        Whether the copies were written; false if they are not adjacent or no integer type is wide enough.
    """
    size, copies = target.element_size(), digits[-1].units.copies
    wider = INTEGERS.get(size * copies)
    places = _places(target, start, digits)
    steps = places.stride()
    if wider is None or copies == 1 or steps[-2:] != (copies, 1) or target.numel() % copies:
        return False
    if any(step % copies for step in (*steps[:-2], start, target.storage_offset())):
        return False
    whole = target.view(-1).view(wider)
    whole = whole.as_strided(places.shape[:-1], [step // copies for step in steps[:-1]], start // copies)
    whole.copy_(_spread(values.view(_UNSIGNED[size]), digits)[..., 0])
    whole.mul_(sum(1 << (8 * size * copy) for copy in range(copies)))
    return True


def _places(target: Tensor, start: int, digits: Sequence[Digit]) -> Tensor:
    """Return a view of the target with two dimensions per digit: units and copies."""
    sizes = [size for digit in digits for size in (digit.units.size, digit.units.copies)]
    strides = [d.wide_stride * step for d in digits for step in (d.units.unit_step, d.units.copy_step)]
    return target.as_strided(sizes, strides, start)


def _spread(values: Tensor, digits: Sequence[Digit]) -> Tensor:
    """Insert a dimension of size 1 after each digit, to broadcast over its copies."""
    return values.reshape([size for digit in digits for size in (digit.units.size, 1)])


def _select(view: Tensor, digits: Sequence[Digit], copies: Sequence[int]) -> Tensor:
    """Select one copy of each summed digit and all copies of the others."""
    remaining = list(copies)
    index: list[slice | int] = []
    for digit in digits:
        is_summed = digit.contracted and digit.units.copies > 1
        index += [slice(None), remaining.pop(0) if is_summed else slice(None)]
    return view[tuple(index)]

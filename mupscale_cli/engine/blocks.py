"""Cutting a tensor's rows into blocks that are read, expanded and written one at a time. No tensors.

A block is contiguous rows of the source and contiguous rows of the target. It is cut on the
slowest axis of the rows whose units fit the budget, so its memory does not depend on the tensor.
Rows of a block that repeat others are expanded once and written several times.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from mupscale_cli.plan.copies import FRESH, CopyMap, submap
from mupscale_cli.plan.dims import Digit, DimMap, Region, Strip


@dataclass(frozen=True, slots=True)
class Run:
    """Neighboring rows of a block, and where in the target they go.

    Attributes:
        row: of the target, for the first of them.
        first: the first of them, in the block.
        count: how many.
    """

    row: int
    first: int
    count: int


Place = tuple[Run, ...]  # where one copy of a block goes


@dataclass(frozen=True, slots=True)
class Block:
    """Rows that are expanded together.

    Attributes:
        row: first row of the source.
        num_rows: rows of the source.
        num_wide_rows: rows of the target, at each place.
        strips: the map from one to the other, relative to the block.
        groups: the places of its copies in the target. Those of one group are shares of a split over axes
            that were cut apart, in the order of the shares; those of different groups repeat one another.
    """

    row: int
    num_rows: int
    num_wide_rows: int
    strips: tuple[Strip, ...]
    groups: tuple[tuple[Place, ...], ...]

    @property
    def num_rows_written(self) -> int:
        """Rows of the target at all places together."""
        return sum(run.count for group in self.groups for place in group for run in place)


def row_blocks(dim: DimMap, wide_row_bytes: int, max_bytes: int) -> Iterator[Block]:
    """Cut a dimension into blocks.

    Args:
        dim: the map of the rows.
        wide_row_bytes: bytes of one row of the target.
        max_bytes: largest size of a block of the target; exceeded only where the copies of a
            single row are larger.
    """
    for region in dim.regions:
        yield from _region_blocks(region, wide_row_bytes, max_bytes)


def _region_blocks(region: Region, wide_row_bytes: int, max_bytes: int) -> Iterator[Block]:
    shared = region.strips[0].digits[: region.num_shared]
    base = min(strip.offset for strip in region.strips)
    wide_base = min(strip.wide_offset for strip in region.strips)
    if not shared or region.wide_size * wide_row_bytes <= max_bytes:
        strips = tuple(_moved(strip, base, wide_base, strip.digits) for strip in region.strips)
        whole = Run(wide_base, 0, region.wide_size)
        yield Block(base, region.size, region.wide_size, strips, (((whole,),),))
        return
    level = next(
        (i for i, digit in enumerate(shared) if _unit_rows(digit) * wide_row_bytes <= max_bytes), len(shared) - 1
    )
    outer, cut = shared[:level], shared[level]
    budget = max(1, max_bytes // (_unit_rows(cut) * wide_row_bytes))
    pieces = list(_pieces(cut, budget))
    for chosen in itertools.product(*(_single_units(digit) for digit in outer)):
        for piece in pieces:
            parts = (*chosen, piece)
            units = _freshened(piece.inner) if any(part.inner.fresh for part in chosen) else piece.inner
            scale = math.prod(len(part.places) ** digit.power for part, digit in zip(parts, shared, strict=False))
            yield Block(
                row=base + sum(part.unit * digit.stride for part, digit in zip(parts, shared, strict=False)),
                num_rows=piece.num_units * cut.stride,
                num_wide_rows=units.wide_size * cut.wide_stride,
                strips=tuple(_inner(strip, level, units, base, wide_base, scale) for strip in region.strips),
                groups=tuple(_groups(parts, shared, wide_base)),
            )


@dataclass(frozen=True, slots=True)
class _Piece:
    """Neighboring units of a digit: the first, their number and map, and the places of their copies, in new units."""

    unit: int
    num_units: int
    inner: CopyMap
    places: tuple[Place, ...]


def _pieces(digit: Digit, budget: int) -> Iterator[_Piece]:
    """The units of a digit in pieces of at most `budget`."""
    units = digit.units
    if units.is_regular:
        for start in range(0, units.size, budget):
            count = min(budget, units.size - start)
            inner = submap(units, count)
            copies = 1 if units.order == "interleaved" else units.copies
            first = start * units.unit_step
            runs = [Run(first + copy * units.copy_step, 0, inner.wide_size) for copy in range(copies)]
            yield _Piece(start, count, inner, tuple((run,) for run in runs))
    elif _is_scattered(digit):
        yield from _scattered(units, budget)
    else:
        yield from _single_units(digit)


def _is_scattered(digit: Digit) -> bool:
    """Whether units of an irregular map can be expanded together: nothing depends on how often each is copied."""
    most = max(map(len, digit.units.positions), default=0)
    return (not digit.contracted or most <= 1) and (not digit.power or digit.units.is_even)


def _scattered(units: CopyMap, budget: int) -> Iterator[_Piece]:
    """Units that are expanded together, with the first copies of all of them, then the second ones, and so on."""
    for start in range(0, units.size, budget):
        positions = units.positions[start : start + budget]
        turns = max(map(len, positions))
        places = (
            _runs((copies[turn], i) for i, copies in enumerate(positions) if turn < len(copies))
            for turn in range(turns)
        )
        yield _Piece(start, len(positions), CopyMap(len(positions)), tuple(places))
    for begin in range(0, len(units.fresh), min(budget, units.size)):
        fresh = units.fresh[begin : begin + min(budget, units.size)]
        runs = _runs((position, i) for i, position in enumerate(fresh))
        yield _Piece(0, len(fresh), _freshened(CopyMap(len(fresh))), (runs,))


def _runs(pairs: Iterable[tuple[int, int]]) -> Place:
    """New units and the ones of a block that go there; neighbors in both are one run."""
    runs: list[Run] = []
    for position, unit in pairs:
        last = runs[-1] if runs else None
        if last and position == last.row + last.count and unit == last.first + last.count:
            runs[-1] = replace(last, count=last.count + 1)
        else:
            runs.append(Run(position, unit, 1))
    return tuple(runs)


def _single_units(digit: Digit) -> Iterator[_Piece]:
    """The units of a digit one by one, each at the places of its copies; new ones have none to copy."""
    for unit, positions in enumerate(digit.units.positions):
        yield _Piece(unit, 1, CopyMap(1), tuple((Run(position, 0, 1),) for position in positions))
    for position in digit.units.fresh:
        yield _Piece(0, 1, CopyMap(1, sources=(FRESH,)), ((Run(position, 0, 1),),))


def _freshened(units: CopyMap) -> CopyMap:
    """A map of the same sizes that copies nothing, as inside of a new unit of an outer axis."""
    return replace(units, sources=(FRESH,) * units.wide_size)


def _unit_rows(digit: Digit) -> int:
    """Rows of the target that lie together for each unit."""
    together = digit.units.copies if digit.units.is_regular and digit.units.order == "interleaved" else 1
    return digit.wide_stride * together


def _groups(parts: tuple[_Piece, ...], digits: tuple[Digit, ...], wide_base: int) -> Iterator[tuple[Place, ...]]:
    """Every choice of places over digits that are not summed; in each, all places over those that are."""
    *outer, (cut, cut_digit) = zip(parts, digits, strict=False)
    rows = {
        is_summed: [
            [run.row * digit.wide_stride for (run,) in part.places]
            for part, digit in outer
            if digit.contracted == is_summed
        ]
        for is_summed in (False, True)
    }
    places = [_in_rows(place, cut_digit.wide_stride) for place in cut.places]
    shares = [places] if cut_digit.contracted else [[place] for place in places]
    for some in itertools.product(*rows[False]):
        for together in shares:
            yield tuple(
                _moved_place(place, wide_base + sum(some) + sum(others))
                for others in itertools.product(*rows[True])
                for place in together
            )


def _in_rows(place: Place, stride: int) -> Place:
    """A place in rows of the target instead of new units."""
    return tuple(Run(run.row * stride, run.first * stride, run.count * stride) for run in place)


def _moved_place(place: Place, by: int) -> Place:
    return tuple(replace(run, row=run.row + by) for run in place)


def _inner(strip: Strip, level: int, units: CopyMap, base: int, wide_base: int, scale: float) -> Strip:
    digits = (replace(strip.digits[level], units=units), *strip.digits[level + 1 :])
    return _moved(strip, base, wide_base, digits, scale)


def _moved(strip: Strip, base: int, wide_base: int, digits: tuple[Digit, ...], scale: float = 1.0) -> Strip:
    return Strip(strip.offset - base, strip.wide_offset - wide_base, digits, strip.scale * scale)


@dataclass(frozen=True, slots=True)
class Repeats:
    """A block of rows without those that repeat others, and how to write it.

    Attributes:
        strips: the map from the block's old rows to the rows that differ.
        num_rows: how many differ.
        num_wide_rows: of the block.
        order: for every row of the block, which of those that differ it is.
        runs: the same as first row and number of rows of each run of neighbors.
    """

    strips: tuple[Strip, ...]
    num_rows: int
    num_wide_rows: int
    order: tuple[int, ...]
    runs: tuple[tuple[int, int], ...]

    def within(self, first: int, count: int) -> tuple[tuple[int, int], ...]:
        """The runs of `count` of the block's rows, from row `first` on."""
        if (first, count) == (0, self.num_wide_rows):
            return self.runs
        clipped: list[tuple[int, int]] = []
        begin = 0
        for row, length in self.runs:
            low, high = max(first, begin), min(first + count, begin + length)
            if low < high:
                clipped.append((row + low - begin, high - low))
            begin += length
        return tuple(clipped)


def all_rows(strips: tuple[Strip, ...], num_wide_rows: int) -> Repeats:
    """A block of which every row is expanded, as noise wants it."""
    return Repeats(strips, num_wide_rows, num_wide_rows, tuple(range(num_wide_rows)), ((0, num_wide_rows),))


@lru_cache(maxsize=64)
def without_repeats(strips: tuple[Strip, ...], num_wide_rows: int) -> Repeats:
    """Leave out the rows of a block that equal others whatever the data.

    Those are the copies of an axis that the layer does not sum over; shares of a sum may differ.

    Args:
        strips: the map of the block's rows, which covers it.
        num_wide_rows: rows of the block.
    """
    order, dense, base = [0] * num_wide_rows, [], 0
    for strip in strips:
        digits: list[Digit] = []
        span = 1
        for digit in reversed(strip.digits):
            kept = replace(digit, units=CopyMap(digit.units.size)) if _repeats(digit) else digit
            digits.insert(0, replace(kept, wide_stride=span))
            span *= kept.units.wide_size
        places, rows = [strip.wide_offset], [base]
        for old, new in zip(strip.digits, digits, strict=True):
            sources = old.units.all_sources if _repeats(old) else range(old.units.wide_size)
            places = [place + unit * old.wide_stride for place in places for unit in range(old.units.wide_size)]
            rows = [row + unit * new.wide_stride for row in rows for unit in sources]
        for place, row in zip(places, rows, strict=True):
            order[place] = row
        dense.append(replace(strip, wide_offset=base, digits=tuple(digits)))
        base += span
    return Repeats(tuple(dense), base, num_wide_rows, tuple(order), tuple(_row_runs(order)))


def _repeats(digit: Digit) -> bool:
    return digit.units.copies > 1 and digit.units.is_regular and not digit.contracted and digit.power == 0


def _row_runs(order: list[int]) -> list[tuple[int, int]]:
    """Neighboring rows that stay neighbors, as first row and count."""
    runs: list[tuple[int, int]] = []
    for row in order:
        if runs and row == sum(runs[-1]):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((row, 1))
    return runs

"""Cutting a tensor's rows into blocks that are read, expanded and written one at a time. Uses no torch.

A block maps contiguous rows of the source to contiguous rows of the target. Rows are cut on the slowest axis whose
units fit the budget, so a block's memory does not depend on the size of the tensor. Rows of a block that are equal are
expanded once and written several times.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from mupscale_cli.plan.copies import CopyMap, fresh_map, submap
from mupscale_cli.plan.dims import Digit, DimMap, Region, Strip


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive rows of a block that go to consecutive rows of the target.

    Attributes:
        row: first row in the target.
        first: first row in the block.
        count: number of rows.
    """

    row: int
    first: int
    count: int


Place = tuple[Run, ...]  # destination of one copy of a block


@dataclass(frozen=True, slots=True)
class Block:
    """Rows that are expanded together.

    Attributes:
        row: first row in the source.
        num_rows: number of rows in the source.
        averaged: if the block is the mean of several such runs of source rows, their number and the distance from one
            to the next; else None.
        num_wide_rows: number of rows of each copy in the target.
        strips: map from source rows to target rows, relative to the block.
        groups: places of the block's copies in the target. The places of a group hold the shares of a split, in order;
            different groups are identical copies.
    """

    row: int
    num_rows: int
    num_wide_rows: int
    strips: tuple[Strip, ...]
    groups: tuple[tuple[Place, ...], ...]
    averaged: tuple[int, int] | None = None

    @property
    def num_rows_written(self) -> int:
        """Number of target rows over all places."""
        return sum(run.count for group in self.groups for place in group for run in place)


def row_blocks(dim: DimMap, wide_row_bytes: int, max_bytes: int) -> Iterator[Block]:
    """Cut a dimension into blocks.

    Args:
        dim: map of the rows.
        wide_row_bytes: bytes per row of the target.
        max_bytes: maximum size of a block in the target; exceeded only if the copies of a single row are larger.
    """
    for region in dim.regions:
        yield from _region_blocks(region, wide_row_bytes, max_bytes)


def _region_blocks(region: Region, wide_row_bytes: int, max_bytes: int) -> Iterator[Block]:
    shared = region.strips[0].digits[: region.num_shared]
    base = min(strip.offset for strip in region.strips)
    wide_base = min(strip.wide_offset for strip in region.strips)
    if not shared or region.wide_size * wide_row_bytes <= max_bytes:
        strips = tuple(_shifted(strip, base, wide_base, strip.digits) for strip in region.strips)
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
            is_within_fresh = any(part.inner.copies == 0 for part in parts)
            means = (
                (digit.units.size, digit.stride) for part, digit in zip(parts, shared, strict=False) if part.is_mean
            )
            units = _as_fresh(piece.inner) if is_within_fresh else piece.inner
            scale = math.prod(len(part.places) ** digit.power for part, digit in zip(parts, shared, strict=False))
            yield Block(
                row=base + sum(part.unit * digit.stride for part, digit in zip(parts, shared, strict=False)),
                num_rows=piece.num_units * cut.stride,
                num_wide_rows=units.wide_size * cut.wide_stride,
                strips=tuple(_inner(strip, level, units, base, wide_base, scale) for strip in region.strips),
                groups=tuple(_groups(parts, shared, wide_base)),
                averaged=next(means, None) if not is_within_fresh else None,
            )


@dataclass(frozen=True, slots=True)
class _Piece:
    """Consecutive units of a digit.

    Attributes:
        unit: first unit in the source.
        num_units: number of source units.
        inner: map of the units.
        places: places of their copies, in target units.
        is_mean: whether the piece is fresh and holds the mean of all units of the digit.
    """

    unit: int
    num_units: int
    inner: CopyMap
    places: tuple[Place, ...]
    is_mean: bool = False


def _pieces(digit: Digit, budget: int) -> Iterator[_Piece]:
    """Cut the units of a digit into pieces of at most `budget` units."""
    units = digit.units
    if units.order == "spread" and digit.fill == "mean":
        budget = units.size  # the fresh units between the others hold the mean of all
    if units.is_regular:
        for start in range(0, units.size, budget):
            count = min(budget, units.size - start)
            inner = submap(units, count)
            copies = units.copies if units.order == "tiled" else 1
            first = start * units.unit_step
            runs = [Run(first + copy * units.copy_step, 0, inner.wide_size) for copy in range(copies)]
            yield _Piece(start, count, inner, tuple((run,) for run in runs))
        if units.order != "spread":  # otherwise the fresh units are between the others
            for start in range(units.size * units.copies, units.wide_size, budget):
                count = min(budget, units.wide_size - start)
                yield _fresh_piece(digit, start, count)
    elif _is_scattered(digit):
        yield from _scattered(units, budget)
    else:
        yield from _single_units(digit)


def _is_scattered(digit: Digit) -> bool:
    """Return whether units of an irregular map can be expanded together: no value depends on the number of copies."""
    most = max(map(len, digit.units.positions), default=0)
    return (not digit.contracted or most <= 1) and (not digit.power or digit.units.is_even)


def _scattered(units: CopyMap, budget: int) -> Iterator[_Piece]:
    """Yield pieces of units that are expanded together; place k of a piece holds the units' copies number k."""
    for start in range(0, units.size, budget):
        positions = units.positions[start : start + budget]
        turns = max(map(len, positions))
        places = (
            _runs((copies[turn], i) for i, copies in enumerate(positions) if turn < len(copies))
            for turn in range(turns)
        )
        yield _Piece(start, len(positions), CopyMap(len(positions)), tuple(places))
    for begin in range(0, len(units.fresh), budget):
        fresh = units.fresh[begin : begin + budget]
        runs = _runs((position, i) for i, position in enumerate(fresh))
        yield _Piece(0, 1, fresh_map(len(fresh)), (runs,))


def _runs(pairs: Iterable[tuple[int, int]]) -> Place:
    """Merge pairs of target unit and block unit into runs that are consecutive in both."""
    runs: list[Run] = []
    for position, unit in pairs:
        last = runs[-1] if runs else None
        if last and position == last.row + last.count and unit == last.first + last.count:
            runs[-1] = replace(last, count=last.count + 1)
        else:
            runs.append(Run(position, unit, 1))
    return tuple(runs)


def _single_units(digit: Digit) -> Iterator[_Piece]:
    """Yield each unit of a digit with the places of its copies, then each new unit that copies none."""
    for unit, positions in enumerate(digit.units.positions):
        yield _Piece(unit, 1, CopyMap(1), tuple((Run(position, 0, 1),) for position in positions))
    for position in digit.units.fresh:
        yield _fresh_piece(digit, position, 1)


def _fresh_piece(digit: Digit, position: int, count: int) -> _Piece:
    """Return the piece of some adjacent new units that copy none."""
    is_mean = digit.fill == "mean"
    return _Piece(0, 1, CopyMap(1, count) if is_mean else fresh_map(count), ((Run(position, 0, count),),), is_mean)


def _as_fresh(units: CopyMap) -> CopyMap:
    """Return a map of the same sizes that copies nothing, for the inside of a new unit of an outer axis."""
    return replace(units, sources=None, copies=0, num_fresh=units.wide_size)


def _unit_rows(digit: Digit) -> int:
    """Return how many consecutive rows of the target belong to one unit."""
    together = digit.units.unit_step if digit.units.is_regular and digit.units.order != "tiled" else 1
    return digit.wide_stride * together


def _groups(parts: tuple[_Piece, ...], digits: tuple[Digit, ...], wide_base: int) -> Iterator[tuple[Place, ...]]:
    """Yield one group for each choice of places over digits that are not summed, with all places over summed digits."""
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
    for copy_rows in itertools.product(*rows[False]):
        for cut_places in shares:
            yield tuple(
                _shift_place(place, wide_base + sum(copy_rows) + sum(share_rows))
                for share_rows in itertools.product(*rows[True])
                for place in cut_places
            )


def _in_rows(place: Place, stride: int) -> Place:
    """Convert a place from target units to target rows."""
    return tuple(Run(run.row * stride, run.first * stride, run.count * stride) for run in place)


def _shift_place(place: Place, by: int) -> Place:
    return tuple(replace(run, row=run.row + by) for run in place)


def _inner(strip: Strip, level: int, units: CopyMap, base: int, wide_base: int, scale: float) -> Strip:
    cut = replace(strip.digits[level], units=units)
    digits = (cut if units.copies else replace(cut, fill="zero"), *strip.digits[level + 1 :])
    return _shifted(strip, base, wide_base, digits, scale)


def _shifted(strip: Strip, base: int, wide_base: int, digits: tuple[Digit, ...], scale: float = 1.0) -> Strip:
    return Strip(strip.offset - base, strip.wide_offset - wide_base, digits, strip.scale * scale)


@dataclass(frozen=True, slots=True)
class DistinctRows:
    """The distinct rows of a block, and how to write the whole block from them.

    Attributes:
        strips: map from the block's source rows to the distinct rows.
        num_rows: number of distinct rows.
        num_wide_rows: number of rows of the block in the target.
        order: index of the distinct row, for every row of the block.
        runs: `order` as runs of consecutive rows: first distinct row and count.
    """

    strips: tuple[Strip, ...]
    num_rows: int
    num_wide_rows: int
    order: tuple[int, ...]
    runs: tuple[tuple[int, int], ...]

    def within(self, first: int, count: int) -> tuple[tuple[int, int], ...]:
        """Return the runs that cover rows `first` to `first + count` of the block."""
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


def all_rows(strips: tuple[Strip, ...], num_wide_rows: int) -> DistinctRows:
    """Treat every row of a block as distinct, which noise requires."""
    return DistinctRows(strips, num_wide_rows, num_wide_rows, tuple(range(num_wide_rows)), ((0, num_wide_rows),))


@lru_cache(maxsize=64)
def distinct_rows(strips: tuple[Strip, ...], num_wide_rows: int) -> DistinctRows:
    """Find the rows of a block that are distinct for any data.

    Copies along an axis that the layer does not sum over are equal. Shares of a sum may differ.

    Args:
        strips: map of the block's rows; covers the whole block.
        num_wide_rows: number of rows of the block in the target.
    """
    order, dense, base = [0] * num_wide_rows, [], 0
    for strip in strips:
        digits: list[Digit] = []
        span = 1
        for digit in reversed(strip.digits):
            reduced = replace(digit, units=CopyMap(digit.units.size)) if _repeats(digit) else digit
            digits.insert(0, replace(reduced, wide_stride=span))
            span *= reduced.units.wide_size
        places, rows = [strip.wide_offset], [base]
        for old, new in zip(strip.digits, digits, strict=True):
            sources = old.units.all_sources if _repeats(old) else range(old.units.wide_size)
            places = [place + unit * old.wide_stride for place in places for unit in range(old.units.wide_size)]
            rows = [row + unit * new.wide_stride for row in rows for unit in sources]
        for place, row in zip(places, rows, strict=True):
            order[place] = row
        dense.append(replace(strip, wide_offset=base, digits=tuple(digits)))
        base += span
    return DistinctRows(tuple(dense), base, num_wide_rows, tuple(order), tuple(_row_runs(order)))


def _repeats(digit: Digit) -> bool:
    units = digit.units
    return units.copies > 1 and not units.num_fresh and units.is_regular and not digit.contracted and digit.power == 0


def _row_runs(order: list[int]) -> list[tuple[int, int]]:
    """Merge consecutive row indices into runs of first row and count."""
    runs: list[tuple[int, int]] = []
    for row in order:
        if runs and row == sum(runs[-1]):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((row, 1))
    return runs

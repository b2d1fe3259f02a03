"""Cutting a tensor's rows into blocks that are read, expanded and written one at a time.

A block is contiguous rows of the source and contiguous rows of the target. It is cut on the
slowest axis of the rows whose units fit the budget, so its memory does not depend on the tensor.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from mupscale_cli.layout import Digit, DimMap, Region, Strip
from mupscale_cli.maps import FRESH, CopyMap, part_of


@dataclass(frozen=True, slots=True)
class Block:
    """Rows that are expanded together.

    Attributes:
        row: first row of the source.
        num_rows: rows of the source.
        num_wide_rows: rows of the target, at each place.
        strips: the map from one to the other, relative to the block.
        groups: the first rows of its copies in the target. Those of one group are shares of a split over
            axes that were cut apart, in the order of the shares; those of different groups repeat one another.
    """

    row: int
    num_rows: int
    num_wide_rows: int
    strips: tuple[Strip, ...]
    groups: tuple[tuple[int, ...], ...]


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
        yield Block(base, region.size, region.wide_size, strips, ((wide_base,),))
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
            scale = math.prod(len(part.positions) ** digit.power for part, digit in zip(parts, shared, strict=False))
            yield Block(
                row=base + sum(part.unit * digit.stride for part, digit in zip(parts, shared, strict=False)),
                num_rows=piece.num_units * cut.stride,
                num_wide_rows=units.wide_size * cut.wide_stride,
                strips=tuple(_inner(strip, level, units, base, wide_base, scale) for strip in region.strips),
                groups=tuple(_groups(parts, shared, wide_base)),
            )


@dataclass(frozen=True, slots=True)
class _Piece:
    """Neighbouring units of a digit: the first of them, their number, where they go, and their map there."""

    unit: int
    num_units: int
    positions: tuple[int, ...]
    inner: CopyMap


def _pieces(digit: Digit, budget: int) -> Iterator[_Piece]:
    """The units of a digit in pieces of at most `budget`, whose copies lie together at each of their places."""
    units = digit.units
    if not units.is_regular:
        yield from _single_units(digit)
        return
    for start in range(0, units.size, budget):
        count = min(budget, units.size - start)
        if units.order == "interleaved":
            positions: tuple[int, ...] = (start * units.copies,)
        else:
            positions = tuple(start + copy * units.size for copy in range(units.copies))
        yield _Piece(start, count, positions, part_of(units, count))


def _single_units(digit: Digit) -> Iterator[_Piece]:
    """The units of a digit one by one, each at the places of its copies; new ones have none to copy."""
    for unit, positions in enumerate(digit.units.positions):
        yield _Piece(unit, 1, positions, CopyMap(1))
    for position in digit.units.fresh:
        yield _Piece(0, 1, (position,), CopyMap(1, sources=(FRESH,)))


def _freshened(units: CopyMap) -> CopyMap:
    """A map of the same sizes that copies nothing, as inside of a new unit of an outer axis."""
    return replace(units, sources=(FRESH,) * units.wide_size)


def _unit_rows(digit: Digit) -> int:
    """Rows of the target that lie together for each unit."""
    together = digit.units.copies if digit.units.is_regular and digit.units.order == "interleaved" else 1
    return digit.wide_stride * together


def _groups(parts: tuple[_Piece, ...], digits: tuple[Digit, ...], wide_base: int) -> Iterator[tuple[int, ...]]:
    """Every choice of places over digits that are not summed; in each, all places over those that are."""
    pairs = list(zip(parts, digits, strict=False))
    rows = [[position * digit.wide_stride for position in part.positions] for part, digit in pairs]
    kept = [positions for positions, (_, digit) in zip(rows, pairs, strict=True) if not digit.contracted]
    summed = [positions for positions, (_, digit) in zip(rows, pairs, strict=True) if digit.contracted]
    for some in itertools.product(*kept):
        start = wide_base + sum(some)
        yield tuple(start + sum(others) for others in itertools.product(*summed))


def _inner(strip: Strip, level: int, units: CopyMap, base: int, wide_base: int, scale: float) -> Strip:
    digits = (replace(strip.digits[level], units=units), *strip.digits[level + 1 :])
    return _moved(strip, base, wide_base, digits, scale)


def _moved(strip: Strip, base: int, wide_base: int, digits: tuple[Digit, ...], scale: float = 1.0) -> Strip:
    return Strip(strip.offset - base, strip.wide_offset - wide_base, digits, strip.scale * scale)

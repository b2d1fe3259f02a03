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
from mupscale_cli.specs import CopyMap


@dataclass(frozen=True, slots=True)
class Block:
    """Rows that are expanded together.

    Attributes:
        row: first row of the source.
        num_rows: rows of the source.
        num_wide_rows: rows of the target.
        strips: the map from one to the other, relative to the block.
        places: where its copies begin in the target: (row, piece), where `piece` says which share
            of the split this copy takes, out of `num_pieces`.
        num_pieces: shares over the axes that were cut apart.
    """

    row: int
    num_rows: int
    num_wide_rows: int
    strips: tuple[Strip, ...]
    places: tuple[tuple[int, int], ...]
    num_pieces: int


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
    if not shared:
        strips = tuple(_moved(strip, base, wide_base, strip.digits) for strip in region.strips)
        yield Block(base, region.size, region.wide_size, strips, ((wide_base, 0),), 1)
        return
    level = next(
        (i for i, digit in enumerate(shared) if _unit_rows(digit) * wide_row_bytes <= max_bytes), len(shared) - 1
    )
    outer, cut = shared[:level], shared[level]
    chunk = max(1, max_bytes // (_unit_rows(cut) * wide_row_bytes))
    num_pieces = math.prod(digit.units.copies for digit in outer if digit.contracted)
    for units in itertools.product(*(range(digit.units.size) for digit in outer)):
        row = base + sum(unit * digit.stride for unit, digit in zip(units, outer, strict=True))
        places = tuple(_places(units, outer, wide_base))
        for start in range(0, cut.units.size, chunk):
            count = min(chunk, cut.units.size - start)
            wide_start = start * _unit_rows(cut)
            yield Block(
                row=row + start * cut.stride,
                num_rows=count * cut.stride,
                num_wide_rows=count * _unit_rows(cut),
                strips=tuple(_inner(strip, level, count, base, wide_base) for strip in region.strips),
                places=tuple((wide_row + wide_start, piece) for wide_row, piece in places),
                num_pieces=num_pieces,
            )


def _unit_rows(digit: Digit) -> int:
    """Rows of the target that the copies of one unit take together."""
    return digit.wide_stride * digit.units.copies


def _places(units: tuple[int, ...], outer: tuple[Digit, ...], wide_base: int) -> Iterator[tuple[int, int]]:
    for copies in itertools.product(*(range(digit.units.copies) for digit in outer)):
        row, piece = wide_base, 0
        for unit, copy, digit in zip(units, copies, outer, strict=True):
            row += (unit * digit.units.copies + copy) * digit.wide_stride
            piece = piece * digit.units.copies + copy if digit.contracted else piece
        yield row, piece


def _inner(strip: Strip, level: int, count: int, base: int, wide_base: int) -> Strip:
    cut = strip.digits[level]
    digits = (replace(cut, units=CopyMap(count, cut.units.copies)), *strip.digits[level + 1 :])
    return _moved(strip, base, wide_base, digits)


def _moved(strip: Strip, base: int, wide_base: int, digits: tuple[Digit, ...]) -> Strip:
    return Strip(strip.offset - base, strip.wide_offset - wide_base, digits, strip.scale)

"""Rows that are written several times, so that they need not be expanded several times. No tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from mupscale_cli.plan.copies import CopyMap
from mupscale_cli.plan.dims import Digit, Strip


@dataclass(frozen=True, slots=True)
class Repeats:
    """A block of rows without those that repeat others, and how to write it.

    Attributes:
        strips: the map from the block's old rows to the rows that differ.
        num_rows: how many differ.
        num_wide_rows: of the block.
        order: for every row of the block, which of those that differ it is.
        runs: the same as first row and number of rows of each run of neighbours.
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
    return Repeats(tuple(dense), base, num_wide_rows, tuple(order), tuple(_runs(order)))


def _repeats(digit: Digit) -> bool:
    return digit.units.copies > 1 and digit.units.is_regular and not digit.contracted and digit.power == 0


def _runs(order: list[int]) -> list[tuple[int, int]]:
    """Neighbouring rows that stay neighbours, as first row and count."""
    runs: list[tuple[int, int]] = []
    for row in order:
        if runs and row == sum(runs[-1]):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((row, 1))
    return runs

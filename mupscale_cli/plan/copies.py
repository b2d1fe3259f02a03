"""Copy maps: which old unit each new unit of an axis copies. Pure Python, no tensors.

The map of the method `mupscale` copies every unit the same number of times, side by side, and ends with fresh units if
the new size is not a multiple of the old one. Other maps repeat the units end to end, or copy randomly drawn units.
Expansion, perturbation and verification depend on maps, not on methods.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Literal

Order = Literal["interleaved", "tiled", "spread"]
FRESH = -1  # source of a new unit that is not a copy


@dataclass(frozen=True)
class CopyMap:
    """A map from the new units of an axis to the old units that they copy.

    Attributes:
        size: number of old units.
        copies: number of copies of each unit.
        order: `interleaved`: unit i becomes `i*copies ... i*copies+copies-1`, which keeps related units together (the
            query heads of a key/value head, the channels of a normalization group); the convention of arXiv
            2602.10545. `tiled`: all units are repeated end to end; the convention of arXiv 2409.12903. `spread`: unit
            i becomes `i*R` where R is the ratio of the sizes, and all units between are fresh; where the units i and
            i + size/2 have one frequency, in rotary positions or sinusoids, they keep it (page `theory`).
        sources: old unit of each new unit, or `FRESH`, for an irregular map; overrides everything but `size`.
        num_fresh: number of new units that copy nothing; after all copies, unless they are spread.
    """

    size: int
    copies: int = 1
    order: Order = "interleaved"
    sources: tuple[int, ...] | None = None
    num_fresh: int = 0

    @property
    def wide_size(self) -> int:
        return self.size * self.copies + self.num_fresh if self.sources is None else len(self.sources)

    @property
    def is_identity(self) -> bool:
        """Whether every new unit is the old unit at its place."""
        return self == CopyMap(self.size)

    @property
    def is_regular(self) -> bool:
        """Whether strides describe the positions of all copies."""
        return self.sources is None

    @property
    def unit_step(self) -> int:
        """Distance between the first copies of two adjacent units, in new units."""
        steps = {"interleaved": self.copies, "tiled": 1, "spread": self.wide_size // self.size}
        return steps[self.order]

    @property
    def copy_step(self) -> int:
        """Distance between two copies of a unit, in new units."""
        return self.size if self.order == "tiled" else 1

    @cached_property
    def all_sources(self) -> tuple[int, ...]:
        """The old unit of each new unit, or `FRESH`."""
        if self.sources is not None:
            return self.sources
        sources = [FRESH] * self.wide_size
        for copy in range(self.copies):
            start, step = copy * self.copy_step, self.unit_step
            sources[start : start + self.size * step : step] = range(self.size)
        return tuple(sources)

    @cached_property
    def positions(self) -> tuple[tuple[int, ...], ...]:
        """The new units that copy each old unit, in ascending order."""
        copies: list[list[int]] = [[] for _ in range(self.size)]
        for position, source in enumerate(self.all_sources):
            if source != FRESH:
                copies[source].append(position)
        return tuple(map(tuple, copies))

    @property
    def fresh(self) -> tuple[int, ...]:
        """The new units that are not copies."""
        if self.sources is None and not self.num_fresh:
            return ()
        return tuple(position for position, source in enumerate(self.all_sources) if source == FRESH)

    @property
    def is_even(self) -> bool:
        """Whether every unit is copied equally often."""
        return self.sources is None or set(Counter(self.sources).values()) == {self.copies}


def fresh_map(count: int) -> CopyMap:
    """Return the map of new units that copy nothing."""
    return CopyMap(1, copies=0, num_fresh=count)


def padded_map(size: int, factor: int) -> CopyMap:
    """Return the map that appends fresh units to the old ones."""
    return CopyMap(size, factor, sources=(*range(size), *(FRESH,) * (size * (factor - 1))))


def drawn_map(axis: Axis, size: int, seed: int) -> CopyMap:
    """Return the map that keeps the old units and appends copies of randomly drawn ones (Net2Net, arXiv 1511.05641).

    The map depends only on the seed, the axis and its size, so all tensors with this axis get the same one.
    Units are drawn with replacement if some may be copied more often than others.

    Args:
        axis: axis to widen.
        size: number of old units.
        seed: random seed.
    """
    if axis.uneven:
        drawn = [_draw(seed, axis.name, size, unit) % size for unit in range(size, size * axis.factor)]
    else:
        drawn = [unit for turn in range(1, axis.factor) for unit in _shuffled(seed, axis.name, size, turn)]
    return CopyMap(size, axis.factor, sources=(*range(size), *drawn))


def _shuffled(seed: int, axis: str, size: int, turn: int) -> list[int]:
    return sorted(range(size), key=lambda unit: _draw(seed, axis, size, unit + turn * size))


def _draw(seed: int, axis: str, size: int, number: int) -> int:
    """Draw a random number that is the same in every version of Python and its libraries."""
    return int.from_bytes(hashlib.sha256(f"{seed} {axis} {size} {number}".encode()).digest()[:8], "little")


@dataclass(frozen=True)
class Arrangement:
    """The positions of a unit's copies: in the order of the axis, unless a subclass overrides `copy_map`."""

    def copy_map(self, axis: Axis, size: int) -> CopyMap:
        """Return the copy map of a widened axis; must be a pure function.

        Args:
            axis: axis to widen.
            size: number of old units.
        """
        order: Order = "tiled" if axis.order == "tiled" else "interleaved"
        return CopyMap(size, axis.factor, order, num_fresh=axis.fresh)


INTERLEAVED = Arrangement()


@dataclass(frozen=True, slots=True)
class Axis:
    """A set of interchangeable units with its factor.

    Attributes:
        name: name in the recipe.
        size: number of units in the source; None if it differs between tensors.
        factor: number of copies of each unit, a whole number >= 1.
        fresh: number of new units that copy nothing.
        arrangement: positions of the copies.
        uneven: whether some units may be copied more often than others, since no layer averages over the axis.
        rotary: how rotary positions order the units, as in `AxisRule`; None if attention does not multiply over the
            axis.
        extra: number of units, the last ones, that have one copy more than the others.
        isometric: whether n copies of a unit are 1/sqrt(n) times the unit, so that sums of squares stay the same.
        sinusoidal: how sines and cosines that the model computes are ordered, as in `AxisRule`; else None.
        order: the order of the copies that the recipe demands: `tiled` if the old units must stay in front,
            `adjacent` if the copies of a unit must stand beside it; else `interleaved`.
    """

    name: str
    size: int | None
    factor: int = 1
    arrangement: Arrangement = INTERLEAVED
    uneven: bool = False
    fresh: int = 0
    rotary: str | None = None
    extra: int = 0
    isometric: bool = False
    sinusoidal: str | None = None
    order: Literal["interleaved", "tiled", "adjacent"] = "interleaved"

    @property
    def is_spread(self) -> bool:
        """Whether a frequency belongs to each unit's number, so that copies beside a unit would have other ones."""
        return bool(self.sinusoidal) or self.rotary in ("halves", "pairs")

    @property
    def keeps_order(self) -> bool:
        """Whether the copies are where the recipe demands them.

        The new units of a `tiled` axis begin with the old ones, at their size. The copies of a unit of an `adjacent`
        one stand beside it, so that tensors of several widths can be joined before or after widening.
        """
        if self.order == "adjacent":
            units = self.size or 2
            copies = CopyMap(units, self.factor).all_sources
            return self.copy_map(units).all_sources[: len(copies)] == copies
        units = self.size or 0
        return self.order != "tiled" or (
            not self.isometric and self.copy_map(units).all_sources[:units] == tuple(range(units))
        )

    @property
    def wide_size(self) -> int | None:
        return None if self.size is None else self.size * self.factor + self.fresh + self.extra

    @property
    def ratio(self) -> Fraction:
        """R, the size in the target divided by the size in the source."""
        return Fraction(self.factor) + (Fraction(self.fresh + self.extra, self.size) if self.size else 0)

    @property
    def repeats(self) -> int:
        """By how much a sum over the products of units grows: k for copies, 1 if they are isometric."""
        return 1 if self.isometric else self.factor

    @property
    def filled(self) -> Fraction:
        """Rho, the mean square of the new units over that of the old ones: k/R, the fraction of copies, or 1/R."""
        return self.repeats / self.ratio

    def copy_map(self, size: int | None = None) -> CopyMap:
        """Return the copy map of the axis in a dimension with `size` units. Default: the axis' own size."""
        units = self.size if size is None else size
        assert units is not None
        if self.isometric:
            runs, sources, start = self.runs(units), list[int](), 0
            for run in runs:
                sources += (start + source for source in run.all_sources)
                start += run.size
            return runs[0] if len(runs) == 1 else CopyMap(units, self.factor, sources=tuple(sources))
        outer, *inner = self.digits(units)
        if not inner:
            return outer
        pairs = (source if source == FRESH else 2 * source for source in outer.all_sources)
        return CopyMap(units, sources=tuple(FRESH if p == FRESH else p + turn for p in pairs for turn in range(2)))

    def runs(self, size: int) -> tuple[CopyMap, ...]:
        """Return the copy maps of consecutive units that have equally many copies."""
        runs = (CopyMap(size - self.extra, self.factor), CopyMap(self.extra, self.factor + 1))
        return tuple(run for run in runs if run.size)

    def digits(self, size: int) -> tuple[CopyMap, ...]:
        """Return the copy maps whose product is that of the axis, slowest first; several only for pairs of units."""
        if self.factor == 1 and not self.fresh:
            return (CopyMap(size),)
        if not self.is_spread:
            return (self.arrangement.copy_map(self, size),)
        if "pairs" in (self.rotary, self.sinusoidal):
            return CopyMap(size // 2, order="spread", num_fresh=self.fresh // 2), CopyMap(2)
        return (CopyMap(size, order="spread", num_fresh=self.fresh),)


def submap(units: CopyMap, count: int) -> CopyMap:
    """Return the map of `count` adjacent units of a regular map.

    It includes their copies, and the fresh units between them, if these are adjacent as well; tiled copies are not.
    """
    if units.order == "tiled":
        return CopyMap(count)
    between = units.num_fresh // units.size if units.order == "spread" else 0
    return replace(units, size=count, num_fresh=count * between)

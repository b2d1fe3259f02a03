"""Copy maps: which old unit each new unit of an axis copies. Pure Python, no tensors.

The method's own map copies every unit the same number of times, side by side. Others lay the copies
end to end, choose at random what is copied, or leave new units without a source; expansion,
perturbation and verification know maps and not methods.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

Order = Literal["interleaved", "tiled"]
FRESH = -1  # the source of a new unit that copies none


@dataclass(frozen=True)
class CopyMap:
    """Which old unit each new unit of an axis copies.

    Attributes:
        size: old units.
        copies: new units over old ones.
        order: `interleaved`: unit i becomes `i*copies ... i*copies+copies-1`, so that units which belong together
            (the query heads of one key/value head, the channels of one normalisation group) stay together; the
            convention of arXiv 2602.10545. `tiled`: the units are repeated as a whole; that of arXiv 2409.12903.
        sources: for an irregular map, the old unit of each new one, or `FRESH`; overrides `order`.
    """

    size: int
    copies: int = 1
    order: Order = "interleaved"
    sources: tuple[int, ...] | None = None

    @property
    def wide_size(self) -> int:
        return self.size * self.copies if self.sources is None else len(self.sources)

    @property
    def is_regular(self) -> bool:
        """Whether the copies of all units lie at the same distances, so that strides describe them."""
        return self.sources is None

    @property
    def unit_step(self) -> int:
        """Distance between the first copies of two neighbouring units, in new units."""
        return self.copies if self.order == "interleaved" else 1

    @property
    def copy_step(self) -> int:
        """Distance between two copies of a unit, in new units."""
        return 1 if self.order == "interleaved" else self.size

    @cached_property
    def all_sources(self) -> tuple[int, ...]:
        """The old unit of each new one."""
        if self.sources is not None:
            return self.sources
        if self.order == "interleaved":
            return tuple(unit for unit in range(self.size) for _ in range(self.copies))
        return tuple(range(self.size)) * self.copies

    @cached_property
    def positions(self) -> tuple[tuple[int, ...], ...]:
        """The copies of each old unit, in order."""
        found: list[list[int]] = [[] for _ in range(self.size)]
        for position, source in enumerate(self.all_sources):
            if source != FRESH:
                found[source].append(position)
        return tuple(map(tuple, found))

    @property
    def fresh(self) -> tuple[int, ...]:
        """The new units that copy none."""
        return tuple(position for position, source in enumerate(self.sources or ()) if source == FRESH)

    @property
    def is_even(self) -> bool:
        """Whether every unit is copied equally often."""
        return self.sources is None or set(Counter(self.sources).values()) == {self.copies}


def padded_map(size: int, factor: int) -> CopyMap:
    """Return the map that keeps the old units where they are and lets fresh ones follow."""
    return CopyMap(size, factor, sources=(*range(size), *(FRESH,) * (size * (factor - 1))))


def drawn_map(axis: Axis, size: int, seed: int) -> CopyMap:
    """Return the map that keeps the old units and draws what the new ones copy (Net2Net, arXiv 1511.05641).

    Places where one axis has one size get one map. An axis whose units may be copied unequally often is drawn with
    replacement.

    Args:
        axis: that grows.
        size: old units.
        seed: of the draws.
    """
    if axis.uneven:
        drawn = [_draw(seed, axis.name, size, unit) % size for unit in range(size, size * axis.factor)]
    else:
        drawn = [unit for turn in range(1, axis.factor) for unit in _shuffled(seed, axis.name, size, turn)]
    return CopyMap(size, axis.factor, sources=(*range(size), *drawn))


def _shuffled(seed: int, axis: str, size: int, turn: int) -> list[int]:
    return sorted(range(size), key=lambda unit: _draw(seed, axis, size, unit + turn * size))


def _draw(seed: int, axis: str, size: int, number: int) -> int:
    """Draw a random number that no version of anything changes."""
    return int.from_bytes(hashlib.sha256(f"{seed} {axis} {size} {number}".encode()).digest()[:8], "little")


@dataclass(frozen=True)
class Arrangement:
    """Where the copies of a unit lie: side by side, where a subclass does not say otherwise."""

    def copy_map(self, axis: Axis, size: int) -> CopyMap:
        """Return the copy map of an axis that grows; a function of the arguments alone.

        Args:
            axis: that grows.
            size: old units.
        """
        return CopyMap(size, axis.factor)


INTERLEAVED = Arrangement()


@dataclass(frozen=True, slots=True)
class Axis:
    """A set of interchangeable units, and by how much it is widened.

    Attributes:
        name: as the recipe declares it.
        size: units in the source; None where the size varies from place to place.
        factor: target size over source size, a whole number >= 1.
        arrangement: where the copies lie.
        uneven: whether nothing averages over the axis, so that units may be copied unequally often.
    """

    name: str
    size: int | None
    factor: int
    arrangement: Arrangement = INTERLEAVED
    uneven: bool = False

    @property
    def wide_size(self) -> int | None:
        return None if self.size is None else self.size * self.factor

    def copy_map(self, size: int | None = None) -> CopyMap:
        """Its map, at a place where it has `size` units."""
        units = self.size if size is None else size
        assert units is not None
        if self.factor == 1:
            return CopyMap(units)
        return self.arrangement.copy_map(self, units)


def part_of(units: CopyMap, count: int) -> CopyMap:
    """The map of `count` neighbouring units of a regular map, with all their copies where they lie together."""
    return replace(units, size=count) if units.order == "interleaved" else CopyMap(count)

"""Block maps: which old block each block of a deeper stack copies, and which are new. Pure Python, no tensors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from mupscale_cli.errors import PlanError
from mupscale_cli.text import counted

PLACES = ("interleaved", "start", "end")


@dataclass(frozen=True)
class BlockMap:
    """A map from the blocks of a deeper stack to the old blocks that they copy.

    Attributes:
        sources: old block of each block, by position.
        new: positions of the new blocks, ascending; the others hold the old blocks in their old order.
    """

    sources: tuple[int, ...]
    new: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Number of old blocks."""
        return len(self.sources) - len(self.new)

    @property
    def wide_size(self) -> int:
        """Number of blocks of the deeper stack."""
        return len(self.sources)

    @cached_property
    def positions(self) -> tuple[tuple[int, ...], ...]:
        """The positions of each old block and of its copies, ascending."""
        found: list[list[int]] = [[] for _ in range(self.size)]
        for position, source in enumerate(self.sources):
            found[source].append(position)
        return tuple(map(tuple, found))

    @cached_property
    def old(self) -> tuple[int, ...]:
        """The position of each old block."""
        return tuple(position for position in range(self.wide_size) if position not in set(self.new))


def place_blocks(
    size: int, wide_size: int, where: str = "interleaved", unit: int = 1, *, stacked: bool = False
) -> BlockMap:
    """Choose the positions of new blocks, and the old block that each of them copies.

    A new block copies the nearest old block before it (after it, at the start) that has the same place in the pattern.

    Args:
        size: number of old blocks.
        wide_size: number of blocks of the deeper stack.
        where: `interleaved` spreads the new blocks evenly, `start` and `end` put them before the first or after the
            last old block; or the positions of the new blocks, such as `3,7`.
        unit: length of the pattern that the model derives from block numbers; new blocks come in runs of this length.
        stacked: whether new blocks repeat the whole stack in its order (arXiv 2405.15319) instead of their neighbors.

    Raises:
        PlanError: the number of blocks shrinks or contradicts the positions, or `where` is none of the above.
    """
    count = wide_size - size
    if count < 0:
        raise PlanError(f"{counted(size, 'block')} cannot become {wide_size}: a stack of blocks only grows")
    new = _new_positions(size, count, where, unit)
    old = iter(range(size))
    number_at = {position: next(old) for position in range(wide_size) if position not in new}
    return BlockMap(
        tuple(
            number_at[position] if position in number_at else _source(position, number_at, size, unit, stacked=stacked)
            for position in range(wide_size)
        ),
        tuple(sorted(new)),
    )


def _new_positions(size: int, count: int, where: str, unit: int) -> set[int]:
    if where == "start":
        return set(range(count))
    if where == "end":
        return set(range(size, size + count))
    if where == "interleaved":
        # Runs of `unit` blocks, old and new, in the order of an evenly spread staircase; a remainder stays at the end.
        unit = min(unit, size)  # of a pattern that is longer than the stack, only its beginning is there
        runs, new_runs = size // unit, -(-count // unit)
        total = runs + new_runs
        chosen = [run for run in range(1, total) if run * runs // total == (run - 1) * runs // total]
        spread = [run * unit + block for run in chosen for block in range(unit)]
        return set(spread[:count])
    try:
        positions = {int(text) for text in where.split(",")}
    except ValueError as error:
        raise PlanError(
            f"unknown place `{where}` of new blocks",
            hint=f"known: {', '.join(PLACES)}, or positions among all blocks such as 3,7",
        ) from error
    if len(positions) != count or not positions <= set(range(size + count)):
        raise PlanError(
            f"`{where}` names {counted(len(positions), 'position')} for {counted(count, 'new block')}",
            hint=f"name {count} different positions from 0 to {size + count - 1}",
        )
    return positions


def _source(position: int, number_at: dict[int, int], size: int, unit: int, *, stacked: bool) -> int:
    if stacked:
        return position % size
    alike = [other for other in number_at if other % unit == position % unit]
    before = [other for other in alike if other < position]
    return number_at[max(before)] if before else number_at[min(alike)] if alike else position % size

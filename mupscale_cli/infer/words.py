"""What a drafted recipe says beyond its layouts, so that its axes can grow to any size (page `language`, "Any size")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction

from mupscale_cli.infer.layouts import Choice, Group


@dataclass(frozen=True, slots=True)
class Norm:
    """The norm that a gain or a bias belongs to.

    Attributes:
        kind: `rms`, or `layer` if it subtracts the mean.
        offset: what its gains are on top of the tensor: 1 if the module multiplies by 1 + w.
        of: the module that it follows directly, by the last part of its name; None if it normalizes the stream.
    """

    kind: str
    offset: int
    of: str | None

    @property
    def text(self) -> str:
        return self.kind if self.of is None else f"{self.kind} of {self.of}"


@dataclass(frozen=True, slots=True)
class Stack:
    """A stack of blocks that can become deeper.

    Attributes:
        size: the config key that counts its blocks.
        names: the beginning of its blocks' names, with a `*` for the number.
        lists: the config keys whose lists have an entry for each block.
    """

    size: str
    names: str
    lists: tuple[str, ...] = ()


@dataclass(frozen=True)
class Words:
    """The words that fresh units and new blocks need.

    Attributes:
        eps: by axis, what fixes the eps of the norms over it: config keys, or a number of the code.
        rotary: by axis of one head, which units rotary positions turn together.
        norms: by pattern, the norm of a gain or bias.
        ratios: by pattern and axis, the power of the size ratio in a tensor's scale; the copies keep the rest. None: there
            is no power at all.
        fresh_only: axes that grow by fresh units alone, so that their copies need no power.
        stack: the blocks; None if they stay as many.
        requires: conditions on the wide config, with their reasons.
    """

    eps: Mapping[str, str] = field(default_factory=dict)
    rotary: Mapping[str, str] = field(default_factory=dict)
    norms: Mapping[str, Norm] = field(default_factory=dict)
    ratios: Mapping[tuple[str, str], Fraction | None] = field(default_factory=dict)
    fresh_only: frozenset[str] = frozenset()
    stack: Stack | None = None
    requires: Mapping[str, str] = field(default_factory=dict)

    def choice(self, group: Group, choice: Choice) -> Choice:
        """Return a group's choice with its powers split into those of the copies and those of the size ratio."""
        for (pattern, axis), ratio in self.ratios.items():
            if pattern == group.pattern:
                choice = self._split(choice, axis, ratio)
        return replace(choice, offset=self.norms[group.pattern].offset) if group.pattern in self.norms else choice

    def _split(self, choice: Choice, axis: str, ratio: Fraction | None) -> Choice:
        powers, pieces = dict(choice.powers), [piece for piece in choice.pieces if piece[2] == axis]
        for dim, piece, _, power in pieces:
            choice = choice.with_piece(dim, piece, axis, self._of_copies(axis, power, ratio))
            if ratio is not None:
                choice = replace(choice, pieces=(*choice.pieces, (dim, piece, f"#{axis}", ratio)))
        if pieces or (axis not in powers and axis not in self.fresh_only):
            return choice
        choice = choice.with_power(axis, self._of_copies(axis, powers.get(axis, Fraction(0)), ratio), choice.offset)
        return choice if ratio is None else replace(choice, powers=(*choice.powers, (f"#{axis}", ratio)))

    def _of_copies(self, axis: str, power: Fraction, ratio: Fraction | None) -> Fraction:
        return Fraction(0) if axis in self.fresh_only or ratio is None else power - ratio

    def word(self, group: Group) -> str:
        """Return the word at the end of a group's layout; empty without one."""
        return self.norms[group.pattern].text if group.pattern in self.norms else ""

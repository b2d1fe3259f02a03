"""What a draft says beyond its layouts, so that its axes can grow to any size (page `language`, "Any size")."""

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
class Split:
    """A power of an axis' factor, split into one of the number of copies and one of the size ratio.

    Attributes:
        copies: the power of the number of copies.
        ratio: the power of the size ratio; None if there is none, and not even a mark.
        power: only tensors with this power are meant; None: all are.
    """

    copies: Fraction
    ratio: Fraction | None
    power: Fraction | None = None

    def applied(self, choice: Choice, axis: str) -> Choice:
        """Return a choice with this split instead of its power of an axis."""
        pieces = [piece for piece in choice.pieces if piece[2] == axis]
        for dim, piece, *_ in pieces:
            choice = choice.with_piece(dim, piece, axis, self.copies)
            if self.ratio is not None:
                choice = replace(choice, pieces=(*choice.pieces, (dim, piece, f"#{axis}", self.ratio)))
        if pieces or (self.power is not None and dict(choice.powers).get(axis) != self.power):
            return choice
        choice = choice.with_power(axis, self.copies, choice.offset)
        return choice if self.ratio is None else replace(choice, powers=(*choice.powers, (f"#{axis}", self.ratio)))


@dataclass(frozen=True, slots=True)
class Stack:
    """A stack of blocks that can become deeper.

    Attributes:
        size: the config key that counts its blocks.
        names: the beginning of its blocks' names, with a `*` for the number.
        lists: the config keys whose lists have an entry for each block.
        numbers: the config keys whose lists name some blocks; a copy of such a block is named too.
    """

    size: str
    names: str
    lists: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Words:
    """The words that fresh units and new blocks need.

    Attributes:
        eps: by axis, what fixes the eps of the norms over it: config keys, or a number of the code.
        rotary: by axis of one head, which units rotary positions turn together.
        norms: by pattern, the norm of a gain or bias.
        splits: by pattern and axis, how the power of the axis in a tensor's scale is written.
        stack: the blocks; None if they stay as many.
        requires: conditions on the wide config, with their reasons.
    """

    eps: Mapping[str, str] = field(default_factory=dict)
    rotary: Mapping[str, str] = field(default_factory=dict)
    norms: Mapping[str, Norm] = field(default_factory=dict)
    splits: Mapping[tuple[str, str], Split] = field(default_factory=dict)
    stack: Stack | None = None
    requires: Mapping[str, str] = field(default_factory=dict)

    def choice(self, group: Group, choice: Choice) -> Choice:
        """Return a group's choice with its powers split into those of the copies and those of the size ratio."""
        for (pattern, axis), split in self.splits.items():
            if pattern == group.pattern:
                choice = split.applied(choice, axis)
        return replace(choice, offset=self.norms[group.pattern].offset) if group.pattern in self.norms else choice

    def word(self, group: Group) -> str:
        """Return the word at the end of a group's layout; empty without one."""
        return self.norms[group.pattern].text if group.pattern in self.norms else ""

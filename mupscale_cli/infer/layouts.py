"""Groups of tensors that share a rule, and the layout chosen for each group."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

from mupscale_cli.infer.shapes import Polynomial

Powers = tuple[tuple[str, Fraction], ...]
_MAX_SPELLED = 3  # equal pieces that are written out


@dataclass(frozen=True, slots=True)
class Piece:
    """One segment of a dimension: a product of axes and counts, slowest first, with its own scale."""

    items: tuple[str | int, ...]
    powers: Powers = ()

    def text(self) -> str:
        return " ".join(map(str, self.items)) + (f"@{powers_text(self.powers)}" if self.powers else "")


@dataclass(frozen=True, slots=True)
class Form:
    """One way to compose a dimension: `prefix` times a concatenation of pieces. Without pieces it is `.`."""

    pieces: tuple[Piece, ...] = ()
    prefix: tuple[str | int, ...] = ()

    def text(self, contracted: bool = False) -> str:
        slash = "/" if contracted else ""
        if not self.pieces:
            return "."
        if len(self.pieces) == 1 and not self.pieces[0].powers:
            items = (*self.prefix, *self.pieces[0].items)
            return slash + (f"({' '.join(map(str, items))})" if len(items) > 1 else str(items[0]))
        if self.prefix and len(set(self.pieces)) == 1 and not self.pieces[0].powers:
            items = (*self.prefix, len(self.pieces), *self.pieces[0].items)
            return f"{slash}({' '.join(map(str, items))})"
        if len(self.pieces) > _MAX_SPELLED and len(set(self.pieces)) == 1 and not self.pieces[0].powers:
            return f"{slash}({len(self.pieces)} {self.pieces[0].text()})"
        inner = f"[{' + '.join(piece.text() for piece in self.pieces)}]"
        return f"{slash}({' '.join(map(str, self.prefix))} {inner})" if self.prefix else slash + inner

    @property
    def axes(self) -> frozenset[str]:
        items = (*self.prefix, *(item for piece in self.pieces for item in piece.items))
        return frozenset(item for item in items if isinstance(item, str))


def powers_text(powers: Powers) -> str:
    """Write powers as recipes do: `embed^-0.5 #d^0.5`; `#` is one of the size ratio."""
    return " ".join(f"{axis}^{_number_text(exponent)}" if exponent != 1 else axis for axis, exponent in powers)


def _number_text(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else str(float(value))


@dataclass(frozen=True, slots=True)
class Dimension:
    """The possible forms of one dimension of a group's tensors, likely ones first."""

    polynomial: Polynomial
    forms: tuple[Form, ...]
    axes: frozenset[str]


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors that one rule describes.

    Attributes:
        pattern: the pattern of their names.
        names: the tensors of the tiny model.
        name_axes: axes in the name, each with the position of the number that it counts.
        dims: the possible forms of each dimension.
        module: the kind of module that owns them.
        contractions: possible sets of dimensions that the module sums over, likely ones first.
        owner: the name of the first tensor's module.
    """

    pattern: str
    names: tuple[str, ...]
    name_axes: tuple[tuple[int, str], ...]
    dims: tuple[Dimension, ...]
    module: str
    contractions: tuple[frozenset[int], ...]
    owner: str

    @property
    def axes(self) -> frozenset[str]:
        """The axes and aliases in any possible form or in the names."""
        return frozenset().union(*(dim.axes for dim in self.dims), (name for _, name in self.name_axes))


@dataclass(frozen=True, slots=True)
class Choice:
    """The layout chosen for a group.

    Attributes:
        forms: for each dimension, the index of its form.
        contraction: the index of the summed dimensions.
        powers: the scale of the whole tensor.
        offset: the constant that the scale leaves out, such as the 1 in a gain of 1 + weight.
        pieces: scales of single pieces, each as dimension, piece, axis and exponent.
    """

    forms: tuple[int, ...]
    contraction: int = 0
    powers: Powers = ()
    offset: int = 0
    pieces: tuple[tuple[int, int, str, Fraction], ...] = ()

    def with_form(self, dim: int, index: int) -> Choice:
        return replace(self, forms=(*self.forms[:dim], index, *self.forms[dim + 1 :]))

    def with_piece(self, dim: int, piece: int, axis: str, exponent: Fraction) -> Choice:
        others = tuple(other for other in self.pieces if other[:3] != (dim, piece, axis))
        return replace(self, pieces=(*others, (dim, piece, axis, exponent)) if exponent else others)

    def with_power(self, axis: str, exponent: Fraction, offset: int = 0) -> Choice:
        others = tuple(power for power in self.powers if power[0] != axis)
        powers = (*others, (axis, exponent)) if exponent else others
        return replace(self, powers=powers, offset=offset if powers else 0)

    def form(self, group: Group, dim: int) -> Form:
        """Return the chosen form of a dimension, with the powers of its pieces."""
        form = group.dims[dim].forms[self.forms[dim]]
        for _, index, axis, exponent in (piece for piece in self.pieces if piece[0] == dim):
            pieces = list(form.pieces)
            if index >= len(pieces) or axis.removeprefix("#") not in (*pieces[index].items, *form.prefix):
                continue
            pieces[index] = replace(pieces[index], powers=(*pieces[index].powers, (axis, exponent)))
            form = replace(form, pieces=tuple(pieces))
        return form


def layout_text(group: Group, choice: Choice, word: str = "") -> str:
    """Write a chosen layout in the language of recipes, with a word about its norm at the end."""
    summed = group.contractions[choice.contraction]
    forms = (choice.form(group, dim) for dim in range(len(group.dims)))
    text = ", ".join(form.text(position in summed) for position, form in enumerate(forms))
    offset = f"offset {choice.offset}" if choice.offset else ""
    scale = " ".join(filter(None, (powers_text(choice.powers), offset, word)))
    return f"{text} | {scale}" if scale else text.strip()

"""Enumerate the forms that a dimension of known size can have, likely ones first."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

from mupscale_cli.infer.axes import Axes
from mupscale_cli.infer.layouts import Dimension, Form, Piece
from mupscale_cli.infer.shapes import Monomial, Polynomial
from mupscale_cli.infer.vocabulary import kind_of

_MAX_SEGMENTS = 8  # more pieces become one, with their number in it
_MAX_PERMUTATIONS = 60
_ORDER = ("experts", "kv", "ng", "lkv", "h", "g", "mh", "lv", "ffn", "d", "p", "dv", "ldk", "ldv", "nope", "rope", "n")


def possible_forms(value: Polynomial, axes: Axes, *, heads_first: bool) -> Dimension:
    """List the forms of a dimension.

    Args:
        value: the size of the dimension.
        axes: the axes of the architecture.
        heads_first: prefer forms of independent axes (`h d`) over the alias of their product (`embed`).
    """
    names: frozenset[str] = frozenset().union(*(monomial.axes for monomial in value))
    if not names:
        return Dimension(value, (Form(),), names)
    expanded = list(_forms(value, axes))
    aliased = _with_aliases(value, axes)
    if aliased is None:
        return Dimension(value, tuple(expanded), names)
    short = list(_forms(aliased, axes))
    forms = [*expanded[:3], *short, *expanded[3:]] if heads_first else [*short[:2], *expanded, *short[2:]]
    return Dimension(value, tuple(forms), names | set(axes.aliases))


def _with_aliases(value: Polynomial, axes: Axes) -> Polynomial | None:
    """Replace products of axes by their alias, or return None if there is no such product."""
    changed = False
    monomials = []
    for monomial in value:
        for alias, product in axes.aliases.items():
            if set(product) <= set(monomial.axes):
                rest = tuple(axis for axis in monomial.axes if axis not in product)
                monomials.append(Monomial((alias, *rest), monomial.count))
                changed = True
                break
        else:
            monomials.append(monomial)
    return tuple(monomials) if changed else None


def _forms(value: Polynomial, axes: Axes) -> Iterator[Form]:
    """Yield the ways to lay out a sum of products, usual ones first."""
    pieces = _pieces(value, axes)
    first = pieces[0].items
    yield Form(tuple(pieces))
    if len(pieces) == 1:
        yield from (Form((Piece(items),)) for items in itertools.permutations(first) if items != first)
        return
    if len(set(pieces)) == 1:
        yield Form((Piece((*first, len(pieces))),))
    prefixes = [first[:cut] for cut in range(1, len(first)) if _share_prefix(pieces, first[:cut])]
    inside = [[Piece(piece.items[len(prefix) :]) for piece in pieces] for prefix in prefixes]
    yield from (Form(tuple(some), prefix) for prefix, some in zip(prefixes, inside, strict=True))
    yield from (Form(permuted) for permuted in _permutations(pieces))
    for prefix, some in zip(prefixes, inside, strict=True):
        yield from (Form(permuted, prefix) for permuted in _permutations(some))


def _pieces(value: Polynomial, axes: Axes) -> list[Piece]:
    """Return one piece per product, largest first. Too many equal products become one piece with their number."""
    pieces: list[Piece] = []
    count = sum(monomial.count if monomial.axes else 1 for monomial in value)
    for monomial in value:
        items: tuple[str | int, ...] = tuple(sorted(monomial.axes, key=_rank))
        if not items:
            pieces.append(Piece((monomial.count,)))
        elif count > _MAX_SEGMENTS:
            pieces.append(Piece((*items, monomial.count) if monomial.count > 1 else items))
        else:
            pieces += [Piece(items)] * monomial.count
    sizes = axes.tiny_sizes
    return sorted(pieces, key=lambda piece: -math.prod(sizes[i] if isinstance(i, str) else i for i in piece.items))


def _rank(axis: str | int) -> tuple[int, str]:
    kind = kind_of(str(axis))
    return (_ORDER.index(kind) if kind in _ORDER else len(_ORDER), str(axis))


def _share_prefix(pieces: Sequence[Piece], prefix: tuple[str | int, ...]) -> bool:
    return all(piece.items[: len(prefix)] == prefix and len(piece.items) > len(prefix) for piece in pieces)


def _permutations(pieces: Sequence[Piece]) -> Iterator[tuple[Piece, ...]]:
    """Yield the other orders of pieces, each order once."""
    seen = {tuple(pieces)}
    for permuted in itertools.islice(itertools.permutations(pieces), 720):
        if permuted not in seen and len(seen) < _MAX_PERMUTATIONS:
            seen.add(permuted)
            yield permuted

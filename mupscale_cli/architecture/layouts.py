"""Parse layouts, which name the axes that each dimension of a tensor runs over: `embed, /(kv g d) | embed^-0.5`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal, Union

from mupscale_cli.architecture.expressions import Expression, Name, expression_at
from mupscale_cli.architecture.syntax import KEYWORDS, Cursor, LanguageError, Token


@dataclass(frozen=True, slots=True)
class Fixed:
    """A dimension, or a part of one, that is never widened.

    `.` matches any size, and `3` only size 3. `.vocab_size` and `.(n_positions + 2)` match the value of an expression
    over the config, or any size if the config lacks its keys.
    """

    size: int | None
    span: tuple[int, int]
    stated: Expression | None = None


@dataclass(frozen=True, slots=True)
class AxisRef:
    """An axis; the layer may sum over it (`/axis`) or average over it (`//axis`, like a MuReadout)."""

    name: str
    contracted: bool
    span: tuple[int, int]
    averaged: bool = False


@dataclass(frozen=True, slots=True)
class Product:
    """One dimension that runs over several axes, the last one fastest: `(a b c)`."""

    items: tuple[Dim, ...]
    span: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Power:
    """A scale: a power of an axis's number of copies, `axis^exponent`, or of its size ratio, `#axis^exponent`.

    Both are the same for whole factors. With 60 units instead of 40, a unit has one copy and the size ratio is 1.5.
    """

    axis: str
    exponent: Fraction
    span: tuple[int, int]
    of_size: bool = False


@dataclass(frozen=True, slots=True)
class Norm:
    """What a norm's gain or bias says about the norm, written `rms of q_proj` at the end of its layout.

    Attributes:
        kind: `rms` divides by the root mean square over the gain's last dimension, `layer` subtracts the mean first.
        of: the module whose output it normalizes, if nothing stands between the two; else None.
        span: where it is written.
        per: an axis of the dimension each of whose units is normalized alone, as a group; None if there are no groups.
    """

    kind: Literal["rms", "layer"]
    of: str | None
    span: tuple[int, int]
    per: AxisRef | None = None


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment of a concatenation, with its own scale: `h d@d^-0.5`."""

    dim: Dim
    powers: tuple[Power, ...]
    span: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Concatenation:
    """Segments laid end to end in one dimension: `[x + y + z]`."""

    segments: tuple[Segment, ...]
    span: tuple[int, int]


Dim = Union[Fixed, AxisRef, Product, Concatenation]


@dataclass(frozen=True, slots=True)
class Layout:
    """The dimensions of a tensor, and its scale beyond the one that its summed axes need.

    Attributes:
        dims: one entry for each dimension of the tensor; empty for a scalar.
        powers: the scale of the whole tensor.
        offset: o if the layer uses o + w instead of the stored w; the scale applies to o + w.
        norm: the norm that the tensor is the gain or bias of; None if it is neither or the recipe does not say.
    """

    dims: tuple[Dim, ...]
    powers: tuple[Power, ...]
    offset: int
    span: tuple[int, int]
    norm: Norm | None = None


@lru_cache(maxsize=4096)  # recipes share most of their texts
def parse_layout(text: str) -> Layout:
    """Parse the dimensions of a tensor: `embed, /(kv g d) | embed^-0.5 offset 1`, `d | #d^0.5 rms of q_proj`.

    Raises:
        LanguageError: the text is not a layout.
    """
    cursor = Cursor(text)
    dims: list[Dim] = []
    if not cursor.at("|") and cursor.token.kind != "end":
        dims.append(_dim(cursor))
        while cursor.accept(","):
            dims.append(_dim(cursor))
    if not (cursor.at("|") or cursor.token.kind == "end"):
        raise cursor.unexpected("expected `,`, `|` or the end (write two axes in one dimension as `(a b)`)")
    if cursor.accept("|") is None:
        cursor.finish()
        return Layout(tuple(dims), (), 0, (0, len(text)))
    powers = () if cursor.at("offset", "rms", "layer") else _powers(cursor)
    offset, norm = _offset(cursor), _norm(cursor)
    cursor.finish()
    return Layout(tuple(dims), powers, offset, (0, len(text)), norm)


def parse_scaled_expression(text: str) -> tuple[Expression, tuple[Power, ...]]:
    """Parse a config value, an expression with an optional scale: `logits_scaling | embed`.

    Raises:
        LanguageError: the text is not an expression, or its scale is invalid.
    """
    cursor = Cursor(text)
    expression = expression_at(cursor)
    powers = _powers(cursor) if cursor.accept("|") else ()
    cursor.finish()
    return expression, powers


def _offset(cursor: Cursor) -> int:
    if cursor.accept("offset") is None:
        return 0
    if cursor.token.kind != "number" or "." in cursor.token.text:
        raise cursor.unexpected("expected a whole number after `offset`")
    return int(cursor.advance().text)


def _norm(cursor: Cursor) -> Norm | None:
    token = cursor.token
    if cursor.accept("rms", "layer") is None:
        return None
    end, of, per = token.span[1], None, None
    if cursor.accept("per"):
        group = _name(cursor, "expected an axis, each of whose units is normalized alone")
        end, per = group.span[1], AxisRef(group.text, False, group.span)
    if cursor.accept("of"):
        module = _name(cursor, "expected the name of the module in front of the norm, like `q_proj`")
        end, of = module.span[1], module.text
    return Norm("rms" if token.text == "rms" else "layer", of, (token.start, end), per)


def _name(cursor: Cursor, expected: str) -> Token:
    if cursor.token.kind != "name" or cursor.token.text in KEYWORDS:
        raise cursor.unexpected(expected)
    return cursor.advance()


def _powers(cursor: Cursor) -> tuple[Power, ...]:
    powers = []
    while cursor.at("#") or (cursor.token.kind == "name" and cursor.token.text not in KEYWORDS):
        of_size = cursor.accept("#") is not None
        token = cursor.token
        if token.kind != "name" or token.text in KEYWORDS:
            raise cursor.unexpected("expected an axis after `#`, as in `#embed^0.5`")
        cursor.advance()
        exponent = _exponent(cursor) if cursor.accept("^") else Fraction(1)
        end = cursor.tokens[cursor.position - 1].span[1]
        powers.append(Power(token.text, exponent, (token.start, end), of_size))
    if not powers:
        error = cursor.unexpected("expected a power of an axis, like `embed^-1`")
        if cursor.token.kind == "end":  # YAML takes ` #` in a text without quotes for the start of a comment
            error.hint = "write a layout with `#` in quotes"
        raise error
    return tuple(powers)


def _exponent(cursor: Cursor) -> Fraction:
    sign = -1 if cursor.accept("-") else 1
    if cursor.token.kind != "number":
        raise cursor.unexpected("expected an exponent")
    return sign * Fraction(cursor.advance().text)


def _dim(cursor: Cursor, contracted: bool = False) -> Dim:
    token = cursor.token
    if cursor.accept("/"):
        if contracted:
            raise LanguageError("`/` inside another `/` has no effect", token.span)
        return _dim(cursor, contracted=True)
    if not contracted and cursor.accept("//"):
        name = cursor.advance()
        if name.kind != "name" or name.text in KEYWORDS:
            raise LanguageError(
                "expected a single axis after `//`, the mark of an axis that is averaged over", token.span
            )
        return AxisRef(name.text, contracted, (token.start, name.span[1]), averaged=True)
    if cursor.accept("("):
        cursor.enter()
        items = _items(cursor, contracted)
        cursor.leave()
        end = cursor.expect(")", token)
        return Product(items, (token.start, end.span[1]))
    if cursor.accept("["):
        cursor.enter()
        segments = [_segment(cursor, contracted)]
        while cursor.accept("+"):
            segments.append(_segment(cursor, contracted))
        cursor.leave()
        end = cursor.expect("]", token)
        return Concatenation(tuple(segments), (token.start, end.span[1]))
    if cursor.accept("."):
        return _fixed(cursor, token)
    if token.kind == "number":
        cursor.advance()
        if "." in token.text or int(token.text) == 0:
            raise LanguageError("a size must be a whole number above 0", token.span)
        return Fixed(int(token.text), token.span)
    if token.kind == "name" and token.text not in KEYWORDS:
        cursor.advance()
        return AxisRef(token.text, contracted, token.span)
    raise cursor.unexpected("expected an axis, `.`, a size, `(` or `[`")


def _fixed(cursor: Cursor, dot: Token) -> Fixed:
    """Parse what follows a dot without a space: `.vocab_size`, `.(n_positions + 2)`; `. embed` is a product."""
    token = cursor.token
    is_stated = (token.kind == "name" and token.text not in KEYWORDS) or token.text == "("
    if token.start != dot.span[1] or not is_stated:
        return Fixed(None, dot.span)
    if opened := cursor.accept("("):
        expression = expression_at(cursor)
        end = cursor.expect(")", opened).span[1]
    else:
        expression, end = Name(token.text, token.span), cursor.advance().span[1]
    return Fixed(None, (dot.start, end), expression)


def _items(cursor: Cursor, contracted: bool) -> tuple[Dim, ...]:
    items = [_dim(cursor, contracted)]
    while cursor.at("(", "[", "/", "//", ".") or cursor.token.kind in ("number", "name"):
        items.append(_dim(cursor, contracted))
    return tuple(items)


def _segment(cursor: Cursor, contracted: bool) -> Segment:
    start = cursor.token.start
    items = _items(cursor, contracted)
    end = cursor.tokens[cursor.position - 1].span[1]
    dim = items[0] if len(items) == 1 else Product(items, (start, end))
    powers = _powers(cursor) if cursor.accept("@") else ()
    return Segment(dim, powers, (start, end))


def axis_refs(layout: Layout) -> Iterator[AxisRef | Power]:
    """Yield every mention of an axis in a layout, with its span."""
    yield from (part for dim in layout.dims for part in _leaves(dim) if not isinstance(part, Fixed))
    yield from layout.powers
    if layout.norm is not None and layout.norm.per is not None:
        yield layout.norm.per


def stated_sizes(layout: Layout) -> Iterator[tuple[int, Expression]]:
    """Yield the number of each dimension whose size the config states, with the expression for it."""
    for number, dim in enumerate(layout.dims):
        yield from ((number, part.stated) for part in _leaves(dim) if isinstance(part, Fixed) and part.stated)


def _leaves(dim: Dim) -> Iterator[Fixed | AxisRef | Power]:
    match dim:
        case Fixed() | AxisRef():
            yield dim
        case Product():
            for item in dim.items:
                yield from _leaves(item)
        case Concatenation():
            for segment in dim.segments:
                yield from _leaves(segment.dim)
                yield from segment.powers

"""Templates of JSON values that name units: `[[decoder_layers, h]]` is a list of pairs of a block and a head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Union, cast

from mupscale_cli.architecture.syntax import KEYWORDS, Cursor, Token

Word = Literal["", "like", "after", "places", "first", "runs"]
_WORDS = ("like", "after", "places", "first", "runs")


@dataclass(frozen=True, slots=True)
class UnitName:
    """An axis or a stack of blocks in a template, with its span in the text."""

    name: str
    span: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Anything:
    """`.`: a value that names no unit."""


@dataclass(frozen=True, slots=True)
class Number:
    """The number of a unit, or a number or list that the word in front of the name says.

    Attributes:
        word: empty for the number of a unit; `like` if other units that are copies of it get the same property; `after`
            for the number of blocks in front of a place between them; `places` for a list that names all these places;
            `first` for a number of blocks at the front; `runs` for a list of runs, each a list of properties and how
            often it repeats.
        axes: the axis; several for the number of a unit of their product, the last one counting fastest.
    """

    word: Word
    axes: tuple[UnitName, ...]


@dataclass(frozen=True, slots=True)
class ListOf:
    """`[x]`: a list of any length; a value that is no list is taken for its only item."""

    item: Template


@dataclass(frozen=True, slots=True)
class Group:
    """`[x, y]`: a list of exactly these items."""

    items: tuple[Template, ...]


@dataclass(frozen=True, slots=True)
class Each:
    """`[x per axis]`: a list with an item for each unit."""

    item: Template
    axis: UnitName


Template = Union[Anything, Number, ListOf, Group, Each]


def parse_template(text: str) -> Template:
    """Parse a template of a JSON value.

    Raises:
        LanguageError: the text is not a template.
    """
    cursor = Cursor(text)
    template = _template(cursor)
    cursor.finish()
    return template


def _template(cursor: Cursor) -> Template:
    opened = cursor.accept("[")
    if opened is None:
        return Anything() if cursor.accept(".") else _number(cursor)
    cursor.enter()
    items = [_template(cursor)]
    if cursor.accept("per"):
        cursor.leave()
        each = Each(items[0], _name(cursor))
        cursor.expect("]", opened)
        return each
    while cursor.accept(","):
        items.append(_template(cursor))
    cursor.leave()
    cursor.expect("]", opened)
    return ListOf(items[0]) if len(items) == 1 else Group(tuple(items))


def _number(cursor: Cursor) -> Number:
    token: Token | None = cursor.accept(*_WORDS)
    word = cast(Word, token.text if token else "")
    opened = cursor.accept("(") if not word else None
    names = [_name(cursor)]
    if opened is not None:
        while not cursor.at(")"):
            names.append(_name(cursor))
        cursor.expect(")", opened)
    return Number(word, tuple(names))


def _name(cursor: Cursor) -> UnitName:
    token = cursor.token
    if token.kind != "name" or token.text in KEYWORDS:
        raise cursor.unexpected("expected an axis, a stack of blocks, `.` or `[`")
    cursor.advance()
    return UnitName(token.text, token.span)


def units_in(template: Template) -> Iterator[UnitName]:
    """Yield every axis and stack that a template names, in order."""
    match template:
        case Number():
            yield from template.axes
        case ListOf():
            yield from units_in(template.item)
        case Group():
            for item in template.items:
                yield from units_in(item)
        case Each():
            yield from units_in(template.item)
            yield template.axis

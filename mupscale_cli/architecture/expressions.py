"""Parse and evaluate expressions over config keys and axes, such as `num_key_value_heads or num_attention_heads`."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, Union

from mupscale_cli.architecture.syntax import KEYWORDS, Cursor, LanguageError
from mupscale_cli.text import shown

Value = Union[None, bool, int, float, str, list[Any]]


@dataclass(frozen=True, slots=True)
class Literal:
    """A number, a quoted string, `true` or `false`."""

    value: bool | int | float | str
    span: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Name:
    """A config key or an axis."""

    name: str
    span: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Operation:
    """An operator with its arguments: one for `not` and unary `-`, any number for a `list`, two for all others.

    The others are `or and == ~ + - * // / []`.
    """

    operator: str
    arguments: tuple[Expression, ...]
    span: tuple[int, int]


Expression = Union[Literal, Name, Operation]
_LEVELS = (("or",), ("and",), ("not",), ("==", "~"), ("+", "-"), ("*", "//", "/"))
_OPERATIONS: dict[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": lambda left, right: int(left // right),  # whole, so that it can be a size
    "/": operator.truediv,
}
_CONSTANTS = {"true": True, "false": False}
_LARGEST = 2**63  # limit of computed numbers


@lru_cache(maxsize=4096)  # recipes share most of their texts
def parse_expression(text: str) -> Expression:
    """Parse an expression over config keys and axes.

    From the loosest binding to the tightest, the operators are `or`; `and`; `not`; `==` and `~` (a glob match on text);
    `+ -`; `* // /`; unary `-`. Operands are names (`a.b` reaches into nested configs, `a[0]` into lists), numbers,
    quoted strings, `true`, `false`, lists `[a, b]` and parentheses.

    Raises:
        LanguageError: the text is not an expression.
    """
    cursor = Cursor(text)
    expression = expression_at(cursor)
    cursor.finish()
    return expression


def expression_at(cursor: Cursor, level: int = 0) -> Expression:
    """Parse the longest expression at a cursor, with operators of a level and tighter ones."""
    if level == len(_LEVELS):
        return _operand(cursor)
    if _LEVELS[level] == ("not",):
        if token := cursor.accept("not"):
            cursor.enter()
            argument = expression_at(cursor, level)
            cursor.leave()
            return Operation("not", (argument,), (token.start, argument.span[1]))
        return expression_at(cursor, level + 1)
    left = expression_at(cursor, level + 1)
    while token := cursor.accept(*_LEVELS[level]):
        right = expression_at(cursor, level + 1)
        left = Operation(token.text, (left, right), (left.span[0], right.span[1]))
    return left


def _operand(cursor: Cursor) -> Expression:
    token = cursor.token
    if cursor.accept("("):
        cursor.enter()
        inner = expression_at(cursor)
        cursor.leave()
        cursor.expect(")", token)
        return inner
    if opened := cursor.accept("["):
        cursor.enter()
        items = [expression_at(cursor)]
        while cursor.accept(","):
            items.append(expression_at(cursor))
        cursor.leave()
        return Operation("list", tuple(items), (token.start, cursor.expect("]", opened).span[1]))
    if cursor.accept("-"):
        cursor.enter()
        argument = _operand(cursor)
        cursor.leave()
        return Operation("-", (argument,), (token.start, argument.span[1]))
    if token.kind == "name" and token.text in _CONSTANTS:
        cursor.advance()
        return Literal(_CONSTANTS[token.text], token.span)
    if token.kind == "name" and token.text not in KEYWORDS:
        cursor.advance()
        return _indexed(cursor, Name(token.text, token.span))
    if token.kind == "number":
        cursor.advance()
        value = float(token.text) if "." in token.text else int(token.text)
        return Literal(value, token.span)
    if token.kind == "text":
        cursor.advance()
        return Literal(token.text[1:-1], token.span)
    raise cursor.unexpected("expected a name, a number or `(`")


def _indexed(cursor: Cursor, name: Name) -> Expression:
    opened = cursor.accept("[")
    if opened is None:
        return name
    token = cursor.token
    if token.kind != "number" or "." in token.text:
        raise cursor.unexpected("expected a whole number")
    cursor.advance()
    end = cursor.expect("]", opened).span[1]
    return Operation("[]", (name, Literal(int(token.text), token.span)), (name.span[0], end))


def names_in(expression: Expression) -> Iterator[Name]:
    """Yield every name that an expression mentions, in order."""
    if isinstance(expression, Name):
        yield expression
    elif isinstance(expression, Operation):
        for argument in expression.arguments:
            yield from names_in(argument)


def evaluate(expression: Expression, values: Mapping[str, Value]) -> Value:
    """Evaluate an expression; an unknown name is None, like JSON's null.

    Args:
        expression: the expression.
        values: config keys, nested where the config is, and axes.

    Raises:
        LanguageError: an operand of an arithmetic operator is not a number, a division is by zero, or a result is
            too large.
    """
    if isinstance(expression, Literal):
        return expression.value
    if isinstance(expression, Name):
        return look_up(expression.name, values)
    kind, arguments = expression.operator, expression.arguments
    if kind == "list":
        return [evaluate(argument, values) for argument in arguments]
    first = evaluate(arguments[0], values)
    if kind == "not":
        return not first
    if kind in ("or", "and"):
        short = bool(first) == (kind == "or")
        return first if short else evaluate(arguments[1], values)
    if len(arguments) == 1:
        return -_number(first, arguments[0], values)
    second = evaluate(arguments[1], values)
    if kind == "==":
        return first == second
    if kind == "[]":
        return _item(first, second)
    if kind == "~":
        texts = first if isinstance(first, list) else [first]
        return any(fnmatchcase(str(text), str(second)) for text in texts if text is not None)
    return _arithmetic(expression, _number(first, arguments[0], values), _number(second, arguments[1], values))


def look_up(name: str, values: Mapping[str, Value]) -> Value:
    """Look up a config key, dotted for nested configs, or an item of a list, `key[0]`; an absent one is None."""
    if name in values:
        return values[name]
    value: object = values
    for part in name.split("."):
        key, *places = part.replace("]", "").split("[")
        value = value.get(key) if isinstance(value, Mapping) else None
        for place in places:
            value = _item(value, int(place))
    return value  # type: ignore[return-value]


def _item(value: object, place: object) -> Value:
    """Return an item of a list, or None if there is none."""
    return value[place] if isinstance(value, list) and isinstance(place, int) and place < len(value) else None


def _number(value: Value, expression: Expression, values: Mapping[str, Value]) -> int | float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    missing = [name.name for name in names_in(expression) if look_up(name.name, values) is None]
    if value is None and missing:
        raise LanguageError(f"the config has no `{missing[0]}`", expression.span)
    raise LanguageError(f"expected a number, got `{shown(value)}`", expression.span)


def _arithmetic(expression: Operation, left: float, right: float) -> int | float:
    if right == 0 and expression.operator in ("//", "/"):
        raise LanguageError("division by zero", expression.span)
    try:
        result = _OPERATIONS[expression.operator](left, right)
    except (OverflowError, ValueError):  # of a number that is infinite
        result = _LARGEST
    if isinstance(result, int) and abs(result) >= _LARGEST:
        raise LanguageError("the result is too large", expression.span)
    return result

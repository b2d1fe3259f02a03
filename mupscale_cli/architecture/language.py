"""The small languages of a recipe: text in, frozen syntax trees out. No tensors, no files.

Three of them share one tokenizer:

- expressions over config keys and axes: `num_key_value_heads or num_attention_heads`
- layouts, what the dimensions of a tensor are made of: `embed, /(kv g d) | embed^-0.5`
- patterns of tensor names: `{prefix}layers.*.self_attn.{k,v}_proj.bias?`

Errors are `LanguageError` with the offending span of the text; whoever knows the file adds it.
"""

from __future__ import annotations

import difflib
import itertools
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Any, Union


class LanguageError(ValueError):
    """Text that does not parse or cannot be evaluated.

    Args:
        message: what is wrong.
        span: (start, end) offsets into the text.
        hint: what to do about it.
    """

    def __init__(self, message: str, span: tuple[int, int], hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.span = span
        self.hint = hint


def suggest(name: str, known: Iterable[str]) -> str | None:
    """A hint that names the nearest known name, and all of them where they are few."""
    known = sorted(known)
    near = [other for other in known if other.endswith(f".{name}")] or difflib.get_close_matches(name, known, n=1)
    parts = [f"did you mean `{near[0]}`?"] if near else []
    if known and len(known) <= 30:
        parts.append(f"known: {', '.join(known)}")
    return " ".join(parts) or None


# Tokens ---------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"""(?P<number>[0-9]+(?:\.[0-9]+)?)
      | (?P<name>[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*)
      | (?P<text>"[^"]*"|'[^']*')
      | (?P<op>==|//|[-+*/()\[\],.|@^~])
      | (?P<space>\s+)""",
    re.VERBOSE,
)
# A recipe is written by hand; what is larger is a mistake or an attack.
_MAX_DEPTH = 50
_MAX_TOKENS = 500
_MAX_DIGITS = 18
_LARGEST = 2**63  # of a number that is computed


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    start: int

    @property
    def span(self) -> tuple[int, int]:
        return self.start, self.start + max(1, len(self.text))


def _tokenize(text: str) -> Iterator[_Token]:
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise LanguageError(f"unexpected character `{text[position]}`", (position, position + 1))
        if match.lastgroup == "number" and len(match.group()) > _MAX_DIGITS:
            raise LanguageError(f"a number of more than {_MAX_DIGITS} digits", match.span())
        if match.lastgroup != "space":
            yield _Token(str(match.lastgroup), match.group(), position)
        position = match.end()
    yield _Token("end", "", len(text))


class _Parser:
    """A cursor over the tokens of one text; lives for one parse."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = list(itertools.islice(_tokenize(text), _MAX_TOKENS + 1))
        if len(self.tokens) > _MAX_TOKENS:
            raise LanguageError(f"longer than {_MAX_TOKENS} names, numbers and signs", self.tokens[-1].span)
        self.position = 0
        self.depth = 0

    @property
    def token(self) -> _Token:
        return self.tokens[self.position]

    def advance(self) -> _Token:
        token = self.token
        self.position += 1
        return token

    def at(self, *texts: str) -> bool:
        return self.token.kind in ("op", "name") and self.token.text in texts

    def accept(self, *texts: str) -> _Token | None:
        return self.advance() if self.at(*texts) else None

    def expect(self, text: str, opened: _Token | None = None) -> _Token:
        if self.at(text):
            return self.advance()
        if self.token.kind == "end" and opened is not None:
            raise LanguageError(f"`{opened.text}` is never closed", opened.span, f"add `{text}`")
        raise self.unexpected(f"expected `{text}`")

    def unexpected(self, expected: str) -> LanguageError:
        found = f"found `{self.token.text}`" if self.token.kind != "end" else "the text ends here"
        return LanguageError(f"{expected}, {found}", self.token.span)

    def enter(self) -> None:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise LanguageError(f"nested deeper than {_MAX_DEPTH} levels", self.token.span)

    def leave(self) -> None:
        self.depth -= 1

    def finish(self) -> None:
        if self.token.kind != "end":
            raise self.unexpected("expected the end")


# Expressions ----------------------------------------------------------------------------------

Value = Union[None, bool, int, float, str, list[Any]]


@dataclass(frozen=True, slots=True)
class Literal:
    """A number, a quoted text, `true` or `false`."""

    value: bool | int | float | str
    span: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Name:
    """A config key or an axis."""

    name: str
    span: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Operation:
    """One of `or and not == ~ + - * // / []`, with one argument for `not` and unary `-`, else two."""

    operator: str
    arguments: tuple[Expression, ...]
    span: tuple[int, int]


Expression = Union[Literal, Name, Operation]
_LEVELS = (("or",), ("and",), ("not",), ("==", "~"), ("+", "-"), ("*", "//", "/"))
_OPERATIONS: dict[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "/": operator.truediv,
}
_MAX_SHOWN = 200  # characters of a value
_KEYWORDS = {"or", "and", "not", "offset"}
_CONSTANTS = {"true": True, "false": False}


def parse_expression(text: str) -> Expression:
    """Parse an expression over config keys and axes.

    The grammar, loosest first: `or`, `and`, `not`, `==` and `~` (a glob match on text), `+ -`,
    `* // /`, unary `-`, then names (`a.b` reaches into nested configs, `a[0]` into lists), numbers,
    quoted texts, `true`, `false` and parentheses.

    Raises:
        LanguageError: the text is not an expression.
    """
    parser = _Parser(text)
    expression = _expression(parser)
    parser.finish()
    return expression


def _expression(parser: _Parser, level: int = 0) -> Expression:
    if level == len(_LEVELS):
        return _operand(parser)
    if _LEVELS[level] == ("not",):
        if token := parser.accept("not"):
            parser.enter()
            argument = _expression(parser, level)
            parser.leave()
            return Operation("not", (argument,), (token.start, argument.span[1]))
        return _expression(parser, level + 1)
    left = _expression(parser, level + 1)
    while token := parser.accept(*_LEVELS[level]):
        right = _expression(parser, level + 1)
        left = Operation(token.text, (left, right), (left.span[0], right.span[1]))
    return left


def _operand(parser: _Parser) -> Expression:
    token = parser.token
    if parser.accept("("):
        parser.enter()
        inner = _expression(parser)
        parser.leave()
        parser.expect(")", token)
        return inner
    if parser.accept("-"):
        parser.enter()
        argument = _operand(parser)
        parser.leave()
        return Operation("-", (argument,), (token.start, argument.span[1]))
    if token.kind == "name" and token.text in _CONSTANTS:
        parser.advance()
        return Literal(_CONSTANTS[token.text], token.span)
    if token.kind == "name" and token.text not in _KEYWORDS:
        parser.advance()
        return _indexed(parser, Name(token.text, token.span))
    if token.kind == "number":
        parser.advance()
        value = float(token.text) if "." in token.text else int(token.text)
        return Literal(value, token.span)
    if token.kind == "text":
        parser.advance()
        return Literal(token.text[1:-1], token.span)
    raise parser.unexpected("expected a name, a number or `(`")


def _indexed(parser: _Parser, name: Name) -> Expression:
    opened = parser.accept("[")
    if opened is None:
        return name
    token = parser.token
    if token.kind != "number" or "." in token.text:
        raise parser.unexpected("expected a whole number")
    parser.advance()
    end = parser.expect("]", opened).span[1]
    return Operation("[]", (name, Literal(int(token.text), token.span)), (name.span[0], end))


def names_in(expression: Expression) -> Iterator[Name]:
    """Every name an expression mentions, in order."""
    if isinstance(expression, Name):
        yield expression
    elif isinstance(expression, Operation):
        for argument in expression.arguments:
            yield from names_in(argument)


def evaluate(expression: Expression, values: Mapping[str, Value]) -> Value:
    """The value of an expression; a name without a value is None, as JSON's null is.

    Raises:
        LanguageError: arithmetic on something that is not a number, or division by zero.
    """
    if isinstance(expression, Literal):
        return expression.value
    if isinstance(expression, Name):
        return look_up(expression.name, values)
    kind, arguments = expression.operator, expression.arguments
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
        return first[second] if isinstance(first, list) and isinstance(second, int) and second < len(first) else None
    if kind == "~":
        texts = first if isinstance(first, list) else [first]
        return any(fnmatchcase(str(text), str(second)) for text in texts if text is not None)
    return _arithmetic(expression, _number(first, arguments[0], values), _number(second, arguments[1], values))


def look_up(name: str, values: Mapping[str, Value]) -> Value:
    """A config key by its name, dotted for nested configs; None where there is none."""
    if name in values:
        return values[name]
    value: object = values
    for key in name.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value  # type: ignore[return-value]


def _number(value: Value, expression: Expression, values: Mapping[str, Value]) -> int | float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    missing = [name.name for name in names_in(expression) if look_up(name.name, values) is None]
    if value is None and missing:
        raise LanguageError(f"the config has no `{missing[0]}`", expression.span)
    raise LanguageError(f"expected a number, got `{shown(value)}`", expression.span)


def shown(value: object) -> str:
    """A value of a config in a message, however large it is."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def _arithmetic(expression: Operation, left: float, right: float) -> int | float:
    if right == 0 and expression.operator in ("//", "/"):
        raise LanguageError("division by zero", expression.span)
    try:
        result = _OPERATIONS[expression.operator](left, right)
    except OverflowError:
        result = _LARGEST
    if isinstance(result, int) and abs(result) >= _LARGEST:
        raise LanguageError("a number is too large", expression.span)
    return result


# Layouts --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fixed:
    """A dimension or part of one that is never widened: `.` has any size, `3` has that size."""

    size: int | None
    span: tuple[int, int]


@dataclass(frozen=True, slots=True)
class AxisRef:
    """An axis, and whether the layer sums over it (`/axis`), or takes the mean itself (`//axis`, as a MuReadout)."""

    name: str
    contracted: bool
    span: tuple[int, int]
    averaged: bool = False


@dataclass(frozen=True, slots=True)
class Product:
    """`(a b c)`: one dimension that runs over a, b and c, the last one fastest."""

    items: tuple[Dim, ...]
    span: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Power:
    """`axis^exponent`: a scale of factor(axis) ** exponent."""

    axis: str
    exponent: Fraction
    span: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a concatenation, with its own scale: `h d@d^-0.5`."""

    dim: Dim
    powers: tuple[Power, ...]
    span: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Concatenation:
    """`[x + y + z]`: segments laid end to end."""

    segments: tuple[Segment, ...]
    span: tuple[int, int]


Dim = Union[Fixed, AxisRef, Product, Concatenation]


@dataclass(frozen=True, slots=True)
class Layout:
    """The dimensions of a tensor and what it is scaled by beyond its summed axes.

    Attributes:
        dims: one for each dimension of the tensor; empty for a scalar.
        powers: scale of the whole tensor.
        offset: o where the layer uses o + w instead of the stored w; the scale acts on o + w.
    """

    dims: tuple[Dim, ...]
    powers: tuple[Power, ...]
    offset: int
    span: tuple[int, int]


def parse_layout(text: str) -> Layout:
    """Parse the dimensions of a tensor: `embed, /(kv g d) | embed^-0.5 offset 1`.

    Raises:
        LanguageError: the text is not a layout.
    """
    parser = _Parser(text)
    dims: list[Dim] = []
    if not parser.at("|") and parser.token.kind != "end":
        dims.append(_dim(parser))
        while parser.accept(","):
            dims.append(_dim(parser))
    if not (parser.at("|") or parser.token.kind == "end"):
        raise parser.unexpected("expected `,`, `|` or the end (two axes in one dimension are written `(a b)`)")
    powers, offset = _scale(parser) if parser.accept("|") else ((), 0)
    parser.finish()
    return Layout(tuple(dims), powers, offset, (0, len(text)))


def parse_scaled_expression(text: str) -> tuple[Expression, tuple[Power, ...]]:
    """Parse a config value, an expression with an optional scale: `logits_scaling | embed`.

    Raises:
        LanguageError: the text is neither.
    """
    parser = _Parser(text)
    expression = _expression(parser)
    powers = _powers(parser) if parser.accept("|") else ()
    parser.finish()
    return expression, powers


def _scale(parser: _Parser) -> tuple[tuple[Power, ...], int]:
    powers = () if parser.at("offset") else _powers(parser)
    if parser.accept("offset") is None:
        return powers, 0
    if parser.token.kind != "number" or "." in parser.token.text:
        raise parser.unexpected("expected a whole number after `offset`")
    return powers, int(parser.advance().text)


def _powers(parser: _Parser) -> tuple[Power, ...]:
    powers = []
    while parser.token.kind == "name" and parser.token.text not in _KEYWORDS:
        token = parser.advance()
        exponent = _exponent(parser) if parser.accept("^") else Fraction(1)
        end = parser.tokens[parser.position - 1].span[1]
        powers.append(Power(token.text, exponent, (token.start, end)))
    if not powers:
        raise parser.unexpected("expected a power of an axis, like `embed^-1`")
    return tuple(powers)


def _exponent(parser: _Parser) -> Fraction:
    sign = -1 if parser.accept("-") else 1
    if parser.token.kind != "number":
        raise parser.unexpected("expected an exponent")
    return sign * Fraction(parser.advance().text)


def _dim(parser: _Parser, contracted: bool = False) -> Dim:
    token = parser.token
    if parser.accept("/"):
        if contracted:
            raise LanguageError("`/` inside of `/` says nothing more", token.span)
        return _dim(parser, contracted=True)
    if not contracted and parser.accept("//"):
        name = parser.advance()
        if name.kind != "name" or name.text in _KEYWORDS:
            raise LanguageError("`//` stands before one axis, over which the layer takes the mean itself", token.span)
        return AxisRef(name.text, contracted, (token.start, name.span[1]), averaged=True)
    if parser.accept("("):
        parser.enter()
        items = _items(parser, contracted)
        parser.leave()
        end = parser.expect(")", token)
        return Product(items, (token.start, end.span[1]))
    if parser.accept("["):
        parser.enter()
        segments = [_segment(parser, contracted)]
        while parser.accept("+"):
            segments.append(_segment(parser, contracted))
        parser.leave()
        end = parser.expect("]", token)
        return Concatenation(tuple(segments), (token.start, end.span[1]))
    if parser.accept("."):
        return Fixed(None, token.span)
    if token.kind == "number":
        parser.advance()
        if "." in token.text or int(token.text) == 0:
            raise LanguageError("a literal size is a whole number above 0", token.span)
        return Fixed(int(token.text), token.span)
    if token.kind == "name" and token.text not in _KEYWORDS:
        parser.advance()
        return AxisRef(token.text, contracted, token.span)
    raise parser.unexpected("expected an axis, `.`, a size, `(` or `[`")


def _items(parser: _Parser, contracted: bool) -> tuple[Dim, ...]:
    items = [_dim(parser, contracted)]
    while parser.at("(", "[", "/", "//", ".") or parser.token.kind in ("number", "name"):
        items.append(_dim(parser, contracted))
    return tuple(items)


def _segment(parser: _Parser, contracted: bool) -> Segment:
    start = parser.token.start
    items = _items(parser, contracted)
    end = parser.tokens[parser.position - 1].span[1]
    dim = items[0] if len(items) == 1 else Product(items, (start, end))
    powers = _powers(parser) if parser.accept("@") else ()
    return Segment(dim, powers, (start, end))


def axis_refs(layout: Layout) -> Iterator[AxisRef | Power]:
    """Every mention of an axis in a layout, with its place."""

    def walk(dim: Dim) -> Iterator[AxisRef | Power]:
        if isinstance(dim, AxisRef):
            yield dim
        elif isinstance(dim, Product):
            for item in dim.items:
                yield from walk(item)
        elif isinstance(dim, Concatenation):
            for segment in dim.segments:
                yield from walk(segment.dim)
                yield from segment.powers

    for dim in layout.dims:
        yield from walk(dim)
    yield from layout.powers


# Patterns -------------------------------------------------------------------------------------

_PATTERN_PART = re.compile(r"\{(?P<brace>[^{}]*)\}|(?P<star>\*\*?)|(?P<literal>[^{}*]+)|(?P<bad>[{}])")
_NAME = r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*"
_NAME_LENGTH = 100  # of a usual name
_NUMBER_LENGTH = 9  # of a number in a name, at most
_MAX_READINGS = _NAME_LENGTH**2
_AXIS_IN_NAME = re.compile(rf"/?(?:{_NAME}|\({_NAME}(?: +{_NAME})+\))\Z")


@dataclass(frozen=True, slots=True)
class NameAxis:
    """Axes that count tensors: `experts.{e}.w1.weight`, `norms.{(kv g)}.weight`.

    Attributes:
        names: one axis, or several of which the last one counts fastest.
        contracted: the layer sums over them.
        starts: where each name begins in the text.
        span: of the braces.
    """

    names: tuple[str, ...]
    contracted: bool
    starts: tuple[int, ...]
    span: tuple[int, int]

    @property
    def group(self) -> str:
        """Its group in the pattern's regular expression."""
        return "__".join(self.names).replace(".", "__")


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern of tensor names.

    Attributes:
        text: as written, without the mark of an optional tensor.
        parts: literals, `*`, `first`, `last`, prefixes, alternatives or a `NameAxis`, in order.
        optional: the checkpoint may lack every tensor that it would match (`?` at the end).
    """

    text: str
    parts: tuple[Part, ...]
    optional: bool

    @property
    def axes(self) -> tuple[NameAxis, ...]:
        return tuple(part for part in self.parts if isinstance(part, NameAxis))

    @property
    def num_wildcards(self) -> int:
        """How many `*` it has, `**` for very many: of two patterns that match a name, the one with fewer is meant."""
        return sum(part is STAR for part in self.parts) + sum(100 for part in self.parts if part is REST)

    def regex(self, prefixes: Mapping[str, str]) -> re.Pattern[str]:
        """A regular expression with the groups `first`, `last`, one for each axis, unnamed ones for `*` and `**`."""
        return re.compile("".join(_part_regex(part, prefixes) for part in self.parts))


@dataclass(frozen=True, slots=True)
class Word:
    """A part of a pattern that has a name of its own."""

    word: str


@dataclass(frozen=True, slots=True)
class Alternatives:
    """`{k,v}`: one of these texts."""

    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Prefix:
    """`{prefix}`: what the recipe's section `prefix` lists, the same for all patterns of a checkpoint."""

    word: str


STAR, REST, FIRST, LAST = Word("*"), Word("**"), Word("first"), Word("last")
_WORDS = {word.word: word for word in (FIRST, LAST)}
Part = Union[str, Word, Prefix, Alternatives, NameAxis]


def parse_pattern(text: str, prefixes: Iterable[str] = ("prefix",)) -> Pattern:
    """Parse a pattern of tensor names.

    `*` is anything without a dot, `**` anything, `{a,b}` is a or b, `{first}` and `{last}` are the smallest and
    the largest number in that place, `{prefix}` is one of the recipe's prefixes, `{e}`, `{/e}`
    and `{(a b)}` are axes in the name. A `?` at the end makes the tensor optional.

    Args:
        text: the pattern.
        prefixes: words that stand for prefixes.

    Raises:
        LanguageError: the text is not a pattern.
    """
    body = text.removesuffix("?")
    if not body:
        raise LanguageError("an empty pattern matches nothing", (0, 1))
    parts = tuple(_pattern_part(match, frozenset(prefixes)) for match in _PATTERN_PART.finditer(body))
    for word in (FIRST, LAST):
        if sum(part is word for part in parts) > 1:
            raise LanguageError(f"`{{{word.word}}}` stands twice in one pattern", (0, len(body)))
    groups = [part.group for part in parts if isinstance(part, NameAxis)]
    if len(set(groups)) != len(groups):
        raise LanguageError("an axis stands twice in one pattern", (0, len(body)))
    if _num_readings(parts) > _MAX_READINGS:
        raise LanguageError(
            "the pattern can be read in too many ways",
            (0, len(body)),
            "use at most one `*` between two dots, at most two `**`, and few choices",
        )
    return Pattern(body, parts, optional=text.endswith("?"))


def _num_readings(parts: Sequence[Part]) -> int:
    """In how many ways a pattern may be tried on one name, at most: what a regular expression's patience is about.

    A `*` that a dot ends, or the name, can be read in one way. Every other one, and every `**`, ends anywhere.
    """
    readings = 1
    for part, after in itertools.zip_longest(parts, parts[1:]):
        if isinstance(part, Alternatives):
            readings *= len(part.texts)
        elif part is REST or (part is STAR and not (after is None or (isinstance(after, str) and after[0] == "."))):
            readings *= _NAME_LENGTH
        elif isinstance(part, (NameAxis, Word)) and part is not STAR and not isinstance(after, str):
            readings *= _NUMBER_LENGTH
    return readings


def _pattern_part(match: re.Match[str], prefixes: frozenset[str]) -> Part:
    if match["bad"]:
        raise LanguageError(f"`{match['bad']}` without its partner", match.span())
    if match["literal"]:
        return match["literal"]
    if match["star"]:
        return STAR if match["star"] == "*" else REST
    inside = match["brace"]
    if inside in _WORDS:
        return _WORDS[inside]
    if inside in prefixes:
        return Prefix(inside)
    if "," in inside:
        return Alternatives(tuple(text.strip() for text in inside.split(",")))
    if _AXIS_IN_NAME.match(inside) is None:
        raise LanguageError(
            f"`{{{inside}}}` is neither an axis, a word nor a choice",
            match.span(),
            "write {axis}, {(a b)}, {a,b}, {first}, {last} or {prefix}",
        )
    names = list(re.finditer(_NAME, inside))
    starts = tuple(match.start() + 1 + name.start() for name in names)
    return NameAxis(tuple(name.group() for name in names), inside.startswith("/"), starts, match.span())


def _part_regex(part: Part, prefixes: Mapping[str, str]) -> str:
    if isinstance(part, str):
        return re.escape(part)
    if isinstance(part, Alternatives):
        return f"(?:{'|'.join(map(re.escape, part.texts))})"
    if isinstance(part, NameAxis):
        return rf"(?P<{part.group}>[0-9]{{1,9}})"
    if isinstance(part, Prefix):
        return re.escape(prefixes[part.word])
    if part in (STAR, REST):
        return r"([^.]+)" if part is STAR else r"(.+)"
    return rf"(?P<{part.word}>[0-9]{{1,9}})"


def expand_name(pattern: Pattern, match: re.Match[str], indices: Sequence[int]) -> str:
    """The matched name with the indices of the axes in it replaced, in the pattern's order."""
    name, shift = match.string, 0
    for axis, index in zip(pattern.axes, indices, strict=True):
        start, end = match.span(axis.group)
        text = str(index)
        name = name[: start + shift] + text + name[end + shift :]
        shift += len(text) - (end - start)
    return name

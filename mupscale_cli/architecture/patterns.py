"""Patterns of tensor names, such as `{prefix}layers.*.self_attn.{k,v}_proj.bias?`, and what they match."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Union

from mupscale_cli.architecture.syntax import LanguageError

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

"""Parse and match patterns of tensor names, such as `{prefix}layers.*.self_attn.{k,v}_proj.bias?`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Union

from mupscale_cli.architecture.syntax import LanguageError

_PATTERN_PART = re.compile(r"\{(?P<brace>[^{}]*)\}|(?P<star>\*\*?)|(?P<literal>[^{}*]+)|(?P<bad>[{}])")
_NAME = r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*"
_NAME_LENGTH = 100  # characters of a typical name
_NUMBER_LENGTH = 9  # most digits of a number in a name
_MAX_READINGS = _NAME_LENGTH**2
_MAX_ENDINGS = 64  # of one pattern
_AXIS_IN_NAME = re.compile(rf"/?(?:{_NAME}|\({_NAME}(?: +{_NAME})+\))\Z")


@dataclass(frozen=True, slots=True)
class NameAxis:
    """Axes that count tensors: `experts.{e}.w1.weight`, `norms.{(kv g)}.weight`.

    Attributes:
        names: one axis or several, the last one counting fastest.
        contracted: whether the layer sums over them.
        starts: the position of each name in the text.
        span: the span of the braces in the text.
    """

    names: tuple[str, ...]
    contracted: bool
    starts: tuple[int, ...]
    span: tuple[int, int]

    @property
    def group(self) -> str:
        """The name of its group in the pattern's regular expression."""
        return "__".join(self.names).replace(".", "__")


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern of tensor names.

    Attributes:
        text: the pattern as written, without a `?` at the end.
        parts: literals, wildcards, `first`, `last`, prefixes, alternatives and axes, in order.
        optional: whether a checkpoint without a matching tensor is valid (`?` at the end).
        endings: every matching name ends with one of these texts.
    """

    text: str
    parts: tuple[Part, ...]
    optional: bool
    endings: tuple[str, ...]

    @property
    def axes(self) -> tuple[NameAxis, ...]:
        return tuple(part for part in self.parts if isinstance(part, NameAxis))

    @property
    def num_wildcards(self) -> int:
        """The number of `*`, with `**` counting as 100: of two patterns that match a name, the one with fewer wins."""
        return sum(part is STAR for part in self.parts) + sum(100 for part in self.parts if part is REST)

    def may_match(self, name: str) -> bool:
        """Tell whether a name ends like the pattern."""
        return name.endswith(self.endings)

    def may_match_end(self, tail: str) -> bool:
        """Tell whether the end of a name, with or without more before it, may be that of a matching one."""
        return tail.endswith(self.endings) or any(ending.endswith(tail) for ending in self.endings)

    def regex(self, prefixes: Mapping[str, str]) -> re.Pattern[str]:
        """Compile a regular expression with groups `first`, `last` and one per axis, and unnamed ones for wildcards."""
        return _compiled("".join(_part_regex(part, prefixes) for part in self.parts))


@dataclass(frozen=True, slots=True)
class Word:
    """A wildcard, `{first}` or `{last}`."""

    word: str


@dataclass(frozen=True, slots=True)
class Alternatives:
    """A choice between literals: `{k,v}`."""

    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Prefix:
    """A word whose value the recipe's section `prefix` lists; a checkpoint uses one value in all patterns."""

    word: str


STAR, REST, FIRST, LAST = Word("*"), Word("**"), Word("first"), Word("last")
_WORDS = {word.word: word for word in (FIRST, LAST)}
Part = Union[str, Word, Prefix, Alternatives, NameAxis]


def parse_pattern(text: str, prefixes: Iterable[str] = ("prefix",)) -> Pattern:
    """Parse a pattern of tensor names.

    `*` matches anything without a dot, `**` anything, `{a,b}` a or b, `{first}` and `{last}` the smallest and the
    largest number in that place, `{prefix}` one of the recipe's prefixes. `{e}`, `{/e}` and `{(a b)}` are axes in the
    name. A `?` at the end makes the tensor optional.

    Args:
        text: the pattern.
        prefixes: the words that are prefixes.

    Raises:
        LanguageError: the text is not a pattern.
    """
    return _parsed(text, frozenset(prefixes))


@lru_cache(maxsize=8192)
def _parsed(text: str, prefixes: frozenset[str]) -> Pattern:
    """Parse a pattern; recipes share most of theirs with those that they extend and with their parts."""
    body = text.removesuffix("?")
    if not body:
        raise LanguageError("an empty pattern matches nothing", (0, 1))
    parts = tuple(_pattern_part(match, prefixes) for match in _PATTERN_PART.finditer(body))
    for word in (FIRST, LAST):
        if sum(part is word for part in parts) > 1:
            raise LanguageError(f"`{{{word.word}}}` appears twice in the pattern", (0, len(body)))
    groups = [part.group for part in parts if isinstance(part, NameAxis)]
    if len(set(groups)) != len(groups):
        raise LanguageError("an axis appears twice in the pattern", (0, len(body)))
    if _num_readings(parts) > _MAX_READINGS:
        raise LanguageError(
            "the pattern can match a name in too many ways",
            (0, len(body)),
            "use at most one `*` between two dots, at most two `**` and only a few choices",
        )
    return Pattern(body, parts, text.endswith("?"), _endings(parts))


def _endings(parts: Sequence[Part]) -> tuple[str, ...]:
    """Return the texts that the literals and choices at the end of a pattern amount to."""
    endings: tuple[str, ...] = ("",)
    for part in reversed(parts):
        texts = part.texts if isinstance(part, Alternatives) else (part,) if isinstance(part, str) else ()
        if not 0 < len(texts) * len(endings) <= _MAX_ENDINGS:
            break
        endings = tuple(text + ending for text in texts for ending in endings)
    return endings


@lru_cache(maxsize=4096)
def _compiled(regex: str) -> re.Pattern[str]:
    """Compile a regular expression; `re` itself remembers 512, fewer than a composite recipe may have."""
    return re.compile(regex)


def _num_readings(parts: Sequence[Part]) -> int:
    """Return an upper bound on the ways to match one name, which limits the time that a regular expression takes.

    A `*` before a dot or at the end of the name has one way to match. Any other `*`, and every `**`, can end anywhere.
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
        raise LanguageError(f"unmatched `{match['bad']}`", match.span())
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
            f"`{{{inside}}}` is not an axis, a choice or a known word",
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
    """Replace the indices of the axes in a matched name, in the pattern's order."""
    name, shift = match.string, 0
    for axis, index in zip(pattern.axes, indices, strict=True):
        start, end = match.span(axis.group)
        text = str(index)
        name = name[: start + shift] + text + name[end + shift :]
        shift += len(text) - (end - start)
    return name

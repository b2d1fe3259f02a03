"""The syntax that expressions and layouts share: tokens, a cursor over them, and errors that know their span.

Errors are `LanguageError`s with the offending span of the text; the caller that knows the file and line adds them.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

KEYWORDS = {"or", "and", "not", "offset", "rms", "layer"}  # names that no axis or config key can have


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


_TOKEN = re.compile(
    r"""(?P<number>[0-9]+(?:\.[0-9]+)?)
      | (?P<name>[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*)
      | (?P<text>"[^"]*"|'[^']*')
      | (?P<op>==|//|[-+*/()\[\],.|@^~\#])
      | (?P<space>\s+)""",
    re.VERBOSE,
)
# People write recipes by hand; anything larger is a mistake or an attack.
_MAX_DEPTH = 50
_MAX_TOKENS = 500
_MAX_DIGITS = 18


@dataclass(frozen=True, slots=True)
class Token:
    """A number, a name, a quoted string, an operator or the end, with its start in the text."""

    kind: str
    text: str
    start: int

    @property
    def span(self) -> tuple[int, int]:
        return self.start, self.start + max(1, len(self.text))


def _tokenize(text: str) -> Iterator[Token]:
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise LanguageError(f"unexpected character `{text[position]}`", (position, position + 1))
        if match.lastgroup == "number" and len(match.group()) > _MAX_DIGITS:
            raise LanguageError(f"the number has more than {_MAX_DIGITS} digits", match.span())
        if match.lastgroup != "space":
            yield Token(str(match.lastgroup), match.group(), position)
        position = match.end()
    yield Token("end", "", len(text))


class Cursor:
    """A position among the tokens of a text, for the duration of one parse."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = list(itertools.islice(_tokenize(text), _MAX_TOKENS + 1))
        if len(self.tokens) > _MAX_TOKENS:
            raise LanguageError(f"the text has more than {_MAX_TOKENS} tokens", self.tokens[-1].span)
        self.position = 0
        self.depth = 0

    @property
    def token(self) -> Token:
        return self.tokens[self.position]

    def advance(self) -> Token:
        token = self.token
        self.position += 1
        return token

    def at(self, *texts: str) -> bool:
        return self.token.kind in ("op", "name") and self.token.text in texts

    def accept(self, *texts: str) -> Token | None:
        return self.advance() if self.at(*texts) else None

    def expect(self, text: str, opened: Token | None = None) -> Token:
        if self.at(text):
            return self.advance()
        if self.token.kind == "end" and opened is not None:
            raise LanguageError(f"`{opened.text}` is never closed", opened.span, f"add `{text}`")
        raise self.unexpected(f"expected `{text}`")

    def unexpected(self, expected: str) -> LanguageError:
        actual = f"`{self.token.text}`" if self.token.kind != "end" else "the end of the text"
        return LanguageError(f"{expected}, found {actual}", self.token.span)

    def enter(self) -> None:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise LanguageError(f"nested deeper than {_MAX_DEPTH} levels", self.token.span)

    def leave(self) -> None:
        self.depth -= 1

    def finish(self) -> None:
        if self.token.kind != "end":
            raise self.unexpected("expected the end of the text")

"""Parse YAML into nodes that remember their place in the file, so an error can point at its cause.

Recipes and job files need only mappings, lists and scalars, which stay text. Anchors, tags and oversized documents are
refused, since a recipe may come from anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar, Union

import yaml

from mupscale_cli.architecture.syntax import LanguageError
from mupscale_cli.errors import RecipeError, RunError

T = TypeVar("T")
MAX_BYTES = 1 << 20
_MAX_DEPTH = 12
_MAX_SHOWN = 400  # characters of a source line in a message
_STANDARD = "tag:yaml.org,2002:"
_TAGS = {
    "map",
    "seq",
    "str",
    "int",
    "float",
    "bool",
    "null",
    "timestamp",
    "merge",
    "value",
}  # the implicit tags of plain YAML
# The C parser is about ten times faster, but some builds of PyYAML lack it.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


Failure = Union[RecipeError, RunError]


@dataclass(frozen=True, slots=True)
class Origin:
    """A place in a file: `line` counts from 1, `column` from 0 (quotes excluded); `failure` is the class of errors."""

    file: str
    line: int
    column: int
    source_line: str
    failure: type[Failure] = RecipeError

    def error(self, message: str, span: tuple[int, int] | None = None, hint: str | None = None) -> Failure:
        """Create an error that shows the line and, if a span of the text is given, carets below it."""
        excerpt = None
        if self.source_line.strip():
            shown = self.source_line.strip()
            indent = len(self.source_line) - len(self.source_line.lstrip())
            start = max(0, self.column - indent + (span[0] if span else 0))
            cut = max(0, start - _MAX_SHOWN // 2) if len(shown) > _MAX_SHOWN else 0
            shown, start = shown[cut : cut + _MAX_SHOWN], start - cut
            excerpt = f"    {shown}"
            if span is not None:
                width = max(1, min(span[1] - span[0], len(shown) - start))
                excerpt += f"\n    {' ' * start}{'^' * width}"
        return self.failure(f"{self.file}:{self.line}: {message}", excerpt=excerpt, hint=hint)


@dataclass(frozen=True, slots=True)
class Text:
    """A scalar without its quotes; `as_written` is false once it is renamed, when carets no longer fit the line."""

    value: str
    origin: Origin
    quoted: bool = False
    as_written: bool = True

    @property
    def is_null(self) -> bool:
        return not self.quoted and self.value in ("", "~", "null")

    def error(self, message: str, span: tuple[int, int] | None = None, hint: str | None = None) -> Failure:
        if not self.as_written:
            return self.origin.error(message, hint=hint)
        return self.origin.error(message, span or (0, max(1, len(self.value))), hint)

    def parse(self, parse: Callable[[str], T]) -> T:
        """Parse the text; a `LanguageError` is raised again with file, line and caret."""
        try:
            return parse(self.value)
        except LanguageError as error:
            raise self.error(error.message, error.span, error.hint) from error


@dataclass(frozen=True, slots=True)
class Items:
    """A list."""

    nodes: tuple[Node, ...]
    origin: Origin

    def error(self, message: str, hint: str | None = None) -> Failure:
        return self.origin.error(message, hint=hint)


@dataclass(frozen=True, slots=True)
class Entries:
    """A mapping, in the order of the file, without duplicate keys."""

    pairs: tuple[tuple[Text, Node], ...]
    origin: Origin

    def __iter__(self) -> Iterator[tuple[Text, Node]]:
        return iter(self.pairs)

    def get(self, key: str) -> Node | None:
        return next((node for text, node in self.pairs if text.value == key), None)

    def error(self, message: str, hint: str | None = None) -> Failure:
        return self.origin.error(message, hint=hint)


Node = Union[Text, Items, Entries]


_KINDS: dict[type[Failure], tuple[str, str, str]] = {  # title, what its language is called, what a document has
    RecipeError: ("recipe", "the recipe language", "YAML with `axes:` and `tensors:` (`mupscale help recipes`)"),
    RunError: ("job file", "a job file", "YAML with a list of `steps:` (`mupscale help pipelines`)"),
}


def parse_document(text: str, file: str, failure: type[Failure] = RecipeError) -> Entries:
    """Parse a YAML mapping.

    Args:
        text: the document.
        file: the document's name, for error messages.
        failure: the class of errors to raise: `RecipeError` for a recipe, `RunError` for a job file.

    Raises:
        RecipeError, RunError: the document is not YAML, not a mapping, too large or too deep, or uses anchors or tags.
    """
    kind, _, form = _KINDS[failure]
    if len(text) > MAX_BYTES:
        raise failure(f"{file}: the {kind} is larger than {MAX_BYTES} bytes")
    lines = text.splitlines()
    document = Origin(file, 1, 0, "", failure)
    try:
        _check_events(text, _Loader, document, lines)
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        if mark:
            _check_lookahead(text[: mark.index], document, lines)
        line = mark.line if mark else 0
        column = mark.column if mark else 0
        source = lines[line] if line < len(lines) else ""
        origin = Origin(file, line + 1, column, source, failure)
        raise origin.error(f"not valid YAML: {error.problem or error.context}", (0, 1)) from error
    except yaml.YAMLError as error:
        raise failure(f"{file}: not valid YAML: {error}") from error
    if root is None:
        raise failure(f"{file}: the {kind} is empty", hint=f"a {kind} is {form}")
    node = _convert(root, document, lines)
    if not isinstance(node, Entries):
        found = "a list" if isinstance(node, Items) else "plain text"
        raise failure(f"{file} is no {kind}: it contains {found}, expected `KEY: VALUE`", hint=f"a {kind} is {form}")
    return node


def _check_events(text: str, loader: type, document: Origin, lines: list[str]) -> None:
    """Refuse aliases and deep nesting before the document is composed, which follows both without a limit."""
    depth = 0
    for event in yaml.parse(text, Loader=loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise _origin_at(event.start_mark, document, lines).error("nested too deeply")
        if isinstance(event, yaml.AliasEvent):
            raise document.failure(
                f"{document.file}: anchors and aliases are not part of {_KINDS[document.failure][1]}",
                hint="write out the value in each place",
            )


def _check_lookahead(text: str, document: Origin, lines: list[str]) -> None:
    """Report deep nesting that the C parser met first: it reads a line ahead and has its own limit."""
    with suppress(yaml.YAMLError):
        _check_events(text, yaml.SafeLoader, document, lines)


def _origin_at(mark: Any, document: Origin, lines: list[str], shift: int = 0) -> Origin:
    source = lines[mark.line] if mark.line < len(lines) else ""
    return replace(document, line=mark.line + 1, column=mark.column + shift, source_line=source)


def _convert(node: yaml.Node, document: Origin, lines: list[str]) -> Node:
    quoted = isinstance(node, yaml.ScalarNode) and node.style in ("'", '"')
    origin = _origin_at(node.start_mark, document, lines, quoted)
    if node.tag and node.tag.removeprefix(_STANDARD) not in _TAGS:
        raise origin.error(f"the tag `{node.tag}` is not part of {_KINDS[origin.failure][1]}")
    if isinstance(node, yaml.ScalarNode):
        return Text(node.value, origin, quoted)
    if isinstance(node, yaml.SequenceNode):
        return Items(tuple(_convert(item, document, lines) for item in node.value), origin)
    pairs: dict[str, tuple[Text, Node]] = {}
    for key_node, value_node in node.value:
        key = _convert(key_node, document, lines)
        if not isinstance(key, Text):
            raise origin.error("a key must be plain text")
        if key.value in pairs:
            raise key.error(f"duplicate key `{key.value}`, first used on line {pairs[key.value][0].origin.line}")
        pairs[key.value] = key, _convert(value_node, document, lines)
    return Entries(tuple(pairs.values()), origin)

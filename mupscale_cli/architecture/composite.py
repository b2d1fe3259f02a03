"""Composite models: a recipe made of recipes, each for a section of the config and a part of the tensors.

A part's axes become `part.axis`, its config keys `section.key`, its tensors those with the part's
prefix. All of it happens on texts, before anything is parsed, so that the rest of the program knows
one kind of recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mupscale_cli.architecture.document import Entries, Items, Node, Text
from mupscale_cli.architecture.expressions import names_in, parse_expression
from mupscale_cli.architecture.layouts import AxisRef, Power, axis_refs, parse_layout, parse_scaled_expression
from mupscale_cli.architecture.patterns import parse_pattern
from mupscale_cli.text import suggest

_KEYS = ("config", "recipe", "prefix", "names")
_DROPPED = ("about", "match", "extends", "prefix", "parameters", "tie")
_GLOBAL = ("tensors", "tie")  # names in expressions that mean the same in every part


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a composite model.

    Attributes:
        name: of the part; its axes are `name.axis`.
        sections: keys of the config that may hold its config, the empty one for the config itself.
        recipe: the recipe's name where the config names no model type that has one.
        prefix: the word for which `{prefix}` of its patterns stands.
        names: the word that stands before its other tensors, None for nothing.
    """

    name: str
    sections: tuple[str, ...]
    recipe: Text
    prefix: str
    names: str | None


def read_parts(document: Entries) -> tuple[Part, ...]:
    """The parts of a recipe, none for most.

    Raises:
        RecipeError: the section is not what it should be.
    """
    node = document.get("parts")
    if node is None:
        return ()
    if not isinstance(node, Entries):
        raise node.error("expected a mapping of parts")
    return tuple(_part(key, entries) for key, entries in node)


def _part(key: Text, node: Node) -> Part:
    if not isinstance(node, Entries):
        raise node.error("a part has `config`, `recipe`, `prefix` and perhaps `names`")
    if not key.value.isidentifier():
        raise key.error(f"`{key.value}` cannot be a name", hint="letters, digits and `_`, not a digit first")
    texts: dict[str, tuple[Text, ...]] = {}
    for name, value in node:
        if name.value not in _KEYS:
            raise name.error(f"unknown key `{name.value}`", hint=suggest(name.value, _KEYS))
        nodes = value.nodes if isinstance(value, Items) and name.value == "config" else (value,)
        if not all(isinstance(item, Text) for item in nodes):
            raise value.error("expected a text")
        texts[name.value] = tuple(item for item in nodes if isinstance(item, Text))
    for required in ("config", "recipe", "prefix"):
        if required not in texts:
            raise key.error(f"the part `{key.value}` has no `{required}`")
    names = texts["names"][0].value if "names" in texts else None
    sections = tuple(text.value for text in texts["config"])
    return Part(key.value, sections, texts["recipe"][0], texts["prefix"][0].value, names)


def section_of(part: Part, config: Mapping[str, Any]) -> str:
    """Which of its sections a config has; the first if it has none."""
    return next((key for key in part.sections if not key or isinstance(config.get(key), Mapping)), part.sections[0])


def as_part(document: Entries, part: Part, section: str) -> tuple[Entries, tuple[str, ...]]:
    """A recipe's document with everything named as a part of another, whose config is in a section.

    Returns:
        The document, and the axes that the part widens by itself.

    Raises:
        RecipeError: a text of it does not parse.
    """
    sections = {key.value: node for key, node in document}
    local = {key.value for name in ("axes", "define") for key, _ in _entries(sections.get(name))}

    def rename(name: str) -> str:
        if name in _GLOBAL:
            return name
        return f"{part.name}.{name}" if name in local else key_of(name)

    def key_of(name: str) -> str:
        return f"{section}.{name}" if section else name

    def axis(text: Text) -> Text:
        return _written(text, f"{part.name}.{text.value}")

    def expression(node: Node) -> Node:
        return _in_texts(node, lambda text: _expression(text, rename))

    def of(name: str) -> Iterable[tuple[Text, Node]]:
        return _entries(sections.get(name))

    renamed = {
        "defaults": [(_written(key, key_of(key.value)), node) for key, node in of("defaults")],
        "define": [(axis(key), expression(node)) for key, node in of("define")],
        "axes": [(axis(key), _axis(node, expression)) for key, node in of("axes")],
        "fixed": [(axis(key), node) for key, node in of("fixed")],
        "linked": [(axis(key), _in_texts(node, lambda text: _product(text, axis))) for key, node in of("linked")],
        "config": [
            (
                _written(key, key_of(key.value)),
                _choices(node, lambda text: _scaled_expression(text, rename), expression),
            )
            for key, node in of("config")
        ],
        "tensors": [
            (_pattern(key, part, rename), _choices(node, lambda text: _layout(text, rename), expression))
            for key, node in of("tensors")
        ],
    }
    unknown = [key for key, _ in document if key.value not in (*renamed, *_DROPPED, "widen")]
    if unknown:
        raise unknown[0].error(f"a part cannot have the section `{unknown[0].value}`")
    widen = sections.get("widen")
    texts = widen.nodes if isinstance(widen, Items) else () if widen is None else (widen,)
    pairs = tuple((_word(name, document), Entries(tuple(found), document.origin)) for name, found in renamed.items())
    return Entries(pairs, document.origin), tuple(rename(text.value) for text in texts if isinstance(text, Text))


def join(parts: Iterable[Entries], own: Entries, merge: Callable[[Entries, Entries], Entries]) -> Entries:
    """The documents of all parts as one, under what the composite recipe says itself."""
    sections: dict[str, list[tuple[Text, Node]]] = {}
    keys: dict[str, Text] = {}
    for document in parts:
        for key, node in document:
            keys[key.value] = key
            sections.setdefault(key.value, []).extend(_entries(node))
    below = Entries(
        tuple((keys[name], Entries(tuple(pairs), own.origin)) for name, pairs in sections.items()), own.origin
    )
    return merge(below, Entries(tuple((key, node) for key, node in own if key.value != "parts"), own.origin))


# Texts ----------------------------------------------------------------------------------------


def _entries(node: Node | None) -> tuple[tuple[Text, Node], ...]:
    return node.pairs if isinstance(node, Entries) else ()


def _word(text: str, document: Entries) -> Text:
    return Text(text, document.origin)


def _written(text: Text, value: str) -> Text:
    """Another text in the same place of the file; its carets would not fit, so it has none."""
    return Text(value, text.origin, text.quoted, as_written=False)


def _in_texts(node: Node, change: Callable[[Text], Text]) -> Node:
    if isinstance(node, Items):
        return Items(tuple(_in_texts(item, change) for item in node.nodes), node.origin)
    return change(node) if isinstance(node, Text) and not node.is_null else node


def _choices(node: Node, value: Callable[[Text], Text], condition: Callable[[Node], Node]) -> Node:
    """A value, or alternatives whose `when` is an expression."""
    if isinstance(node, Items):
        return Items(tuple(_choices(item, value, condition) for item in node.nodes), node.origin)
    if isinstance(node, Entries):
        pairs = [(key, condition(inner) if key.value == "when" else _in_texts(inner, value)) for key, inner in node]
        return Entries(tuple(pairs), node.origin)
    return _in_texts(node, value)


def _axis(node: Node, expression: Callable[[Node], Node]) -> Node:
    if isinstance(node, Entries):
        pairs = [(key, _axis(inner, expression) if key.value == "size" else inner) for key, inner in node]
        return Entries(tuple(pairs), node.origin)
    if isinstance(node, Text) and node.value in ("from shapes", "varies"):
        return node
    return expression(node)


def _replaced(text: Text, names: Iterable[tuple[int, str, str]]) -> Text:
    """A text with names, given by where they start, replaced by others."""
    value = text.value
    for start, old, new in sorted(names, reverse=True):
        value = value[:start] + new + value[start + len(old) :]
    return _written(text, value)


def _expression(text: Text, rename: Callable[[str], str]) -> Text:
    names = names_in(text.parse(parse_expression))
    return _replaced(text, [(name.span[0], name.name, rename(name.name)) for name in names])


def _scaled_expression(text: Text, rename: Callable[[str], str]) -> Text:
    expression, powers = text.parse(parse_scaled_expression)
    names = [(name.span[0], name.name, rename(name.name)) for name in names_in(expression)]
    return _replaced(text, [*names, *((power.span[0], power.axis, rename(power.axis)) for power in powers)])


def _layout(text: Text, rename: Callable[[str], str]) -> Text:
    if text.value in ("keep", "omit"):
        return text

    def name(ref: AxisRef | Power) -> str:
        return ref.axis if isinstance(ref, Power) else ref.name

    refs = axis_refs(text.parse(parse_layout))
    return _replaced(text, [(ref.span[0], name(ref), rename(name(ref))) for ref in refs])


def _product(text: Text, axis: Callable[[Text], Text]) -> Text:
    factors = (factor.strip() for factor in text.value.split("*"))
    return _written(text, " * ".join(axis(_written(text, factor)).value for factor in factors))


def _pattern(text: Text, part: Part, rename: Callable[[str], str]) -> Text:
    pattern = text.parse(parse_pattern)
    named = [
        (start, name, rename(name))
        for axis in pattern.axes
        for start, name in zip(axis.starts, axis.names, strict=True)
    ]
    value = _replaced(text, named).value
    if "{prefix}" in value:
        return _written(text, value.replace("{prefix}", f"{{{part.prefix}}}"))
    return _written(text, f"{{{part.names}}}{value}" if part.names else value)

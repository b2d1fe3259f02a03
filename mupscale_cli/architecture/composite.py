"""Composite recipes: one recipe made of several, each for a section of the config and a part of the tensors.

A part's axes become `part.axis`, its config keys become `section.key`, and its tensors get the part's prefix. The
names are replaced in the text of the documents, before parsing, so the rest of the program knows one kind of recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from mupscale_cli.architecture.document import Entries, Items, Node, Text
from mupscale_cli.architecture.expressions import look_up, names_in, parse_expression
from mupscale_cli.architecture.layouts import (
    AxisRef,
    Power,
    axis_refs,
    parse_layout,
    parse_scaled_expression,
    stated_sizes,
)
from mupscale_cli.architecture.patterns import parse_pattern
from mupscale_cli.architecture.units import parse_template, units_in
from mupscale_cli.text import suggest

_KEYS = ("config", "recipe", "prefix", "names", "renames", "axes")
_MAPPINGS = {
    "renames": "a mapping of beginnings of names to what the composite has in their place",
    "axes": "a mapping of the part's axes to those of the composite that they are, for instance `o: text.embed`",
}
_IGNORED = ("about", "match", "extends", "prefix", "tie")
_GLOBAL = ("tensors", "block", "tie")  # names that mean the same in the expressions of every part
# Of the number of an axis's fresh units, and of all its new ones, in conditions that the widened model must satisfy.
FRESH_PREFIX, NEW_PREFIX = "fresh.", "new."


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a composite model.

    Attributes:
        name: the part's name; its axes are called `name.axis`.
        sections: the config keys that may hold its config, dotted in sections; the empty key means the whole config.
        recipe: the recipe to use unless the part's config has a model type with a built-in recipe.
        prefix: the word that replaces `{prefix}` in its patterns.
        names: the word to put in front of its other tensors, None for no word.
        renames: beginnings of names behind `{prefix}`, each with what the composite has in its place.
        axes: axes of the part that are axes of another one: an encoder whose outputs enter the residual stream of the
            language model writes units of that stream, and so has its factors and its fresh units.
    """

    name: str
    sections: tuple[str, ...]
    recipe: Text
    prefix: str
    names: str | None
    renames: tuple[tuple[str, str], ...] = ()
    axes: tuple[tuple[str, str], ...] = ()


def read_parts(document: Entries) -> tuple[Part, ...]:
    """Read the section `parts`; most recipes have none.

    Raises:
        RecipeError: the section is invalid.
    """
    node = document.get("parts")
    if node is None:
        return ()
    if not isinstance(node, Entries):
        raise node.error("expected a mapping of parts")
    return tuple(_part(key, entries) for key, entries in node)


def _part(key: Text, node: Node) -> Part:
    if not isinstance(node, Entries):
        raise node.error("expected a mapping of `config`, `recipe`, `prefix` and perhaps `names`, `renames` and `axes`")
    if not key.value.isidentifier():
        raise key.error(
            f"`{key.value}` is not a valid name", hint="use letters, digits and `_`, and no digit at the start"
        )
    texts: dict[str, tuple[Text, ...]] = {}
    mappings: dict[str, tuple[tuple[str, str], ...]] = {}
    for name, value in node:
        if name.value not in _KEYS:
            raise name.error(f"unknown key `{name.value}`", hint=suggest(name.value, _KEYS))
        if name.value in _MAPPINGS:
            mappings[name.value] = _mapping(value, _MAPPINGS[name.value])
            continue
        nodes = value.nodes if isinstance(value, Items) and name.value == "config" else (value,)
        if not all(isinstance(item, Text) for item in nodes):
            raise value.error("expected a single value, not a list or a mapping")
        texts[name.value] = tuple(item for item in nodes if isinstance(item, Text))
    for required in ("config", "recipe", "prefix"):
        if required not in texts:
            raise key.error(f"the part `{key.value}` has no `{required}`")
    names = texts["names"][0].value if "names" in texts else None
    sections = tuple(text.value for text in texts["config"])
    return Part(key.value, sections, texts["recipe"][0], texts["prefix"][0].value, names, **mappings)


def _mapping(node: Node, meaning: str) -> tuple[tuple[str, str], ...]:
    if not isinstance(node, Entries) or not all(isinstance(value, Text) for _, value in node):
        raise node.error(f"expected {meaning}")
    return tuple((key.value, value.value) for key, value in node if isinstance(value, Text))


def find_section(part: Part, config: Mapping[str, Any]) -> str:
    """Return the first of a part's sections that the config has, or the first of all if it has none."""
    return next(
        (key for key in part.sections if not key or isinstance(look_up(key, config), Mapping)), part.sections[0]
    )


def rename_as_part(document: Entries, part: Part, section: str, composite: Entries) -> tuple[Entries, tuple[str, ...]]:
    """Rename the axes, config keys and tensors of a recipe's document to those of a part.

    Args:
        document: the part's recipe.
        part: the part.
        section: the config key that holds the part's config, empty for the whole config.
        composite: the composite's recipe, which may rename the part as a whole.

    Returns:
        The renamed document, and the axes that the part's factor widens.

    Raises:
        RecipeError: an expression, a layout or a pattern does not parse.
    """
    sections = {key.value: node for key, node in document}
    loaded = _loaded_prefix(part, composite)
    local = {key.value for name in ("axes", "define", "depth") for key, _ in _entries(sections.get(name))}
    shared = dict(part.axes)
    if unknown_axes := shared.keys() - local:
        raise part.recipe.error(
            f"`axes` of the part `{part.name}` names `{min(unknown_axes)}`, but its recipe has no such axis"
        )

    def rename(name: str) -> str:
        if name in _GLOBAL or name in shared:
            return shared.get(name, name)
        for prefix in (FRESH_PREFIX, NEW_PREFIX):
            if name.startswith(prefix):
                return prefix + rename(name.removeprefix(prefix))
        return f"{part.name}.{name}" if name in local else config_key(name)

    def config_key(name: str) -> str:
        return f"{section}.{name}" if section else name

    def axis(text: Text) -> Text:
        return _renamed(text, shared.get(text.value, f"{part.name}.{text.value}"))

    def axis_or_word(name: str) -> str:
        return rename(name) if name in local else name  # a word of the part's prefix, which the composite has as well

    def expression(node: Node) -> Node:
        return _map_texts(node, lambda text: _expression(text, rename))

    def layouts(node: Node) -> Node:
        return _map_choices(node, lambda text: _layout(text, rename), expression)

    def loaded_name(text: Text) -> Text:
        return _renamed(text, text.value.replace("{prefix}", loaded))

    def entries(name: str) -> Iterable[tuple[Text, Node]]:
        return _entries(sections.get(name))

    def entries_by_axis(name: str) -> Iterable[tuple[Text, Node]]:
        return ((key, node) for key, node in entries(name) if key.value not in shared)

    renamed = {
        "defaults": [(_renamed(key, config_key(key.value)), node) for key, node in entries("defaults")],
        "define": [(axis(key), expression(node)) for key, node in entries("define")],
        "axes": [(axis(key), _map_axis(node, expression)) for key, node in entries_by_axis("axes")],
        "fixed": [(axis(key), node) for key, node in entries_by_axis("fixed")],
        "linked": [
            (axis(key), _map_texts(node, lambda text: _product(text, axis))) for key, node in entries_by_axis("linked")
        ],
        "depth": [
            (axis(key), _map_depth(node, expression, lambda text: _pattern(text, part, axis_or_word), config_key))
            for key, node in entries("depth")
        ],
        "config": [
            (
                _renamed(key, config_key(key.value)),
                _map_choices(node, lambda text: _scaled_expression(text, rename), expression),
            )
            for key, node in entries("config")
        ],
        "units": [
            (
                key if " in " in key.value else _renamed(key, config_key(key.value)),
                _map_texts(node, lambda text: _template(text, f"{part.name}.")),
            )
            for key, node in entries("units")
        ],
        **{
            name: [(_expression(key, rename), node) for key, node in entries(name)]
            for name in ("covers", "requires", "notes")
        },
        "tensors": [(_pattern(key, part, axis_or_word), layouts(node)) for key, node in entries("tensors")],
        "parameters": [
            (_pattern(key, part, axis_or_word), _map_parameters(node, loaded_name, layouts))
            for key, node in entries("parameters")
            if "{prefix}" in key.value  # other tensors are those of a head, which a part has under names of its own
        ],
    }
    unknown = [key for key, _ in document if key.value not in (*renamed, *_IGNORED, "widen")]
    if unknown:
        raise unknown[0].error(f"a part cannot have the section `{unknown[0].value}`")
    widen = sections.get("widen")
    texts = widen.nodes if isinstance(widen, Items) else () if widen is None else (widen,)
    renamed_sections = tuple(
        (Text(name, document.origin), Entries(tuple(pairs), document.origin)) for name, pairs in renamed.items()
    )
    return Entries(renamed_sections, document.origin), tuple(
        rename(text.value) for text in texts if isinstance(text, Text) and text.value not in shared
    )


def join_parts(parts: Iterable[Entries], composite: Entries, merge: Callable[[Entries, Entries], Entries]) -> Entries:
    """Join the documents of all parts; the composite recipe's own sections override them.

    Args:
        parts: the parts' documents, already renamed.
        composite: the composite recipe's document.
        merge: merges a document into another that it overrides.
    """
    sections: dict[str, list[tuple[Text, Node]]] = {}
    keys: dict[str, Text] = {}
    for document in parts:
        for key, node in document:
            keys[key.value] = key
            sections.setdefault(key.value, []).extend(_entries(node))
    origin = composite.origin
    joined = Entries(tuple((keys[name], Entries(tuple(pairs), origin)) for name, pairs in sections.items()), origin)
    return merge(joined, Entries(tuple((key, node) for key, node in composite if key.value != "parts"), origin))


def with_optional(document: Entries, words: Collection[str]) -> Entries:
    """Make the tensors of some parts optional, given the words that begin their names: the model may lack them."""
    begins = tuple(f"{{{word}}}" for word in words)

    def pattern(key: Text) -> Text:
        is_optional = not key.value.startswith(begins) or key.value.endswith("?")
        return key if is_optional else _renamed(key, f"{key.value}?")

    pairs = (
        (name, Entries(tuple((pattern(key), rule) for key, rule in _entries(node)), node.origin))
        if name.value == "tensors" and begins
        else (name, node)
        for name, node in document
    )
    return Entries(tuple(pairs), document.origin)


# Renaming --------------------------------------------------------------------------------------


def _entries(node: Node | None) -> tuple[tuple[Text, Node], ...]:
    return node.pairs if isinstance(node, Entries) else ()


def _loaded_prefix(part: Part, composite: Entries) -> str:
    """Return what the names of a part's tensors begin with after loading, according to the composite's recipe."""
    sections = {key.value: node for key, node in composite}
    for key, node in _entries(sections.get("parameters")):
        if key.value == f"{{{part.prefix}}}**" and isinstance(node, Text) and node.value.endswith("*"):
            return node.value.removesuffix("*")
    return f"{{{part.prefix}}}"


def _renamed(text: Text, value: str) -> Text:
    """Return a text with another value and the same origin; errors in it show no caret, which would not fit."""
    return Text(value, text.origin, text.quoted, as_written=False)


def _map_texts(node: Node, change: Callable[[Text], Text]) -> Node:
    if isinstance(node, Items):
        return Items(tuple(_map_texts(item, change) for item in node.nodes), node.origin)
    return change(node) if isinstance(node, Text) and not node.is_null else node


def _map_choices(node: Node, value: Callable[[Text], Text], condition: Callable[[Node], Node]) -> Node:
    """Rename within a value, or within alternatives whose `when` is a condition."""
    if isinstance(node, Items):
        return Items(tuple(_map_choices(item, value, condition) for item in node.nodes), node.origin)
    if isinstance(node, Entries):
        pairs = [(key, condition(inner) if key.value == "when" else _map_texts(inner, value)) for key, inner in node]
        return Entries(tuple(pairs), node.origin)
    return _map_texts(node, value)


def _map_parameters(node: Node, name: Callable[[Text], Text], dims: Callable[[Node], Node]) -> Node:
    """Rename within what a pattern of the section `parameters` maps to: a name, one with dimensions, or several."""
    if isinstance(node, Items):
        return Items(tuple(_map_parameters(item, name, dims) for item in node.nodes), node.origin)
    if isinstance(node, Entries):
        pairs = [(key, dims(inner) if key.value == "dims" else _map_texts(inner, name)) for key, inner in node]
        return Entries(tuple(pairs), node.origin)
    return _map_texts(node, name)


def _map_axis(node: Node, expression: Callable[[Node], Node]) -> Node:
    if isinstance(node, Entries):
        pairs = [(key, _map_axis(inner, expression) if key.value in ("size", "eps") else inner) for key, inner in node]
        return Entries(tuple(pairs), node.origin)
    if isinstance(node, Items):
        return Items(tuple(_map_axis(item, expression) for item in node.nodes), node.origin)
    if isinstance(node, Text) and (node.value in ("from shapes", "varies") or _is_number(node.value)):
        return node
    return expression(node)


def _is_number(text: str) -> bool:
    with suppress(ValueError):
        float(text)
        return True
    return False


def _map_depth(
    node: Node, expression: Callable[[Node], Node], pattern: Callable[[Text], Text], config_key: Callable[[str], str]
) -> Node:
    """Rename within the description of a stack of blocks."""
    changes: dict[str, Callable[[Node], Node]] = {
        "size": expression,
        "every": expression,
        "unmoved": expression,
        "names": lambda inner: _map_texts(inner, pattern),
        "about": lambda inner: inner,
    }

    def as_keys(inner: Node) -> Node:
        return _map_texts(inner, lambda text: _renamed(text, config_key(text.value)))

    if not isinstance(node, Entries):
        return node
    return Entries(tuple((key, changes.get(key.value, as_keys)(inner)) for key, inner in node), node.origin)


def _replace_names(text: Text, names: Iterable[tuple[int, str, str]]) -> Text:
    """Replace names in a text; each is given by its start, the old name and the new one."""
    value = text.value
    for start, old, new in sorted(names, reverse=True):
        value = value[:start] + new + value[start + len(old) :]
    return _renamed(text, value)


def _expression(text: Text, rename: Callable[[str], str]) -> Text:
    names = names_in(text.parse(parse_expression))
    return _replace_names(text, [(name.span[0], name.name, rename(name.name)) for name in names])


def _scaled_expression(text: Text, rename: Callable[[str], str]) -> Text:
    expression, powers = text.parse(parse_scaled_expression)
    names = [(name.span[0], name.name, rename(name.name)) for name in names_in(expression)]
    return _replace_names(text, [*names, *((power.span[0], power.axis, rename(power.axis)) for power in powers)])


def _layout(text: Text, rename: Callable[[str], str]) -> Text:
    if text.value in ("keep", "omit"):
        return text

    def name(ref: AxisRef | Power) -> str:
        return ref.axis if isinstance(ref, Power) else ref.name

    layout = text.parse(parse_layout)
    names = [(ref.span[0], name(ref)) for ref in axis_refs(layout)]
    names += [(key.span[0], key.name) for _, stated in stated_sizes(layout) for key in names_in(stated)]
    return _replace_names(text, [(start, old, rename(old)) for start, old in names])


def _template(text: Text, prefix: str) -> Text:
    units = units_in(text.parse(parse_template))
    return _replace_names(text, [(unit.span[0], unit.name, prefix + unit.name) for unit in units])


def _product(text: Text, axis: Callable[[Text], Text]) -> Text:
    factors = (factor.strip() for factor in text.value.split("*"))
    return _renamed(text, " * ".join(axis(_renamed(text, factor)).value for factor in factors))


def patterns_as_part(document: Entries, part: Part) -> tuple[Text, ...]:
    """Return the patterns of a recipe's rules as those of a part, with the recipe's own names of axes."""
    return tuple(_pattern(key, part, str) for key, _ in _entries(document.get("tensors")))


def _pattern(text: Text, part: Part, rename: Callable[[str], str]) -> Text:
    pattern = text.parse(parse_pattern)
    axis_names = [
        (start, name, rename(name))
        for axis in pattern.axes
        for start, name in zip(axis.starts, axis.names, strict=True)
    ]
    value = _replace_names(text, axis_names).value
    if "{prefix}" in value:
        for old, new in part.renames:
            value = value.replace(f"{{prefix}}{old}", f"{{prefix}}{new}")
        return _renamed(text, value.replace("{prefix}", f"{{{part.prefix}}}"))
    return _renamed(text, f"{{{part.names}}}{value}" if part.names else value)

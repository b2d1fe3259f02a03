"""Parse a recipe's document into a `Recipe`; a mistake raises a `RecipeError` that points at the line and the token."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Literal, TypeVar

from mupscale_cli.architecture.document import Entries, Items, Node, Text
from mupscale_cli.architecture.expressions import Expression, Name, names_in, parse_expression
from mupscale_cli.architecture.implied import implied_rules
from mupscale_cli.architecture.layouts import Layout, Power, axis_refs, parse_layout, parse_scaled_expression
from mupscale_cli.architecture.patterns import REST, STAR, Pattern, Prefix, parse_pattern
from mupscale_cli.architecture.types import (
    NORMS,
    ORDERS,
    ROTARY,
    SINUSOIDAL,
    TIES,
    AxisRule,
    Choice,
    ConfigRule,
    DepthRule,
    Keep,
    Link,
    MeasuredDefault,
    Omit,
    ParameterRule,
    Recipe,
    Requirement,
    TensorRule,
    TieRule,
    UnitsRule,
)
from mupscale_cli.architecture.units import parse_template, units_in
from mupscale_cli.errors import RecipeError
from mupscale_cli.text import listed, suggest

T = TypeVar("T")
_AXIS_WORDS = ("size", "about", "uneven", "eps", "rotary", "norm", "sinusoidal", "order")
_SECTIONS = (
    "about",
    "extends",
    "match",
    "parts",
    "prefix",
    "defaults",
    "define",
    "axes",
    "widen",
    "fixed",
    "linked",
    "depth",
    "config",
    "units",
    "covers",
    "requires",
    "notes",
    "tensors",
    "parameters",
    "tie",
)


def parse_recipe(name: str, file: str, digest: str, document: Entries, groups: dict[str, tuple[str, ...]]) -> Recipe:
    """Parse every section of a recipe's document.

    Args:
        name: the recipe's name.
        file: the file that it was read from, for messages.
        digest: SHA-256 of all the text that it consists of.
        document: its sections, already merged with those of the recipe that it extends and of its parts.
        groups: for each part of a composite recipe, the axes that the part's factor widens.

    Raises:
        RecipeError: a section is missing, unknown or invalid, or names an unknown axis.
    """
    for key, _ in document:
        if key.value not in _SECTIONS:
            raise key.error(f"unknown section `{key.value}`", hint=suggest(key.value, _SECTIONS))
    sections = {key.value: node for key, node in document}
    for required in ("axes", "tensors"):
        if required not in sections:
            raise RecipeError(f"{file}: the section `{required}` is missing")
    keys, condition, tensor_patterns = parse_match(sections.get("match"))
    prefixes = parse_prefixes(sections.get("prefix"))
    defaults = _entries(sections.get("defaults"))
    recipe = Recipe(
        name=name,
        file=file,
        digest=digest,
        about=_optional_text(sections.get("about")),
        keys=keys,
        tensor_patterns=tensor_patterns,
        condition=condition,
        parameters=tuple(
            rule
            for key, node in _entries(sections.get("parameters"))
            for rule in _parameter_rules(key, node, prefixes[0])
        ),
        tie=_tie(sections.get("tie"), prefixes[0]),
        prefixes=prefixes,
        groups=groups,
        defaults={key.value: _plain(node) for key, node in defaults if not isinstance(node, Entries)},
        measured={key.value: _measured(node, prefixes[0]) for key, node in defaults if isinstance(node, Entries)},
        definitions=tuple(_definition(key, node) for key, node in _entries(sections.get("define"))),
        axes=tuple(_axis(key, node) for key, node in _entries(sections["axes"])),
        widen=_widen(sections.get("widen"), groups),
        fixed={key.value: _text(node).value for key, node in _entries(sections.get("fixed"))},
        links=tuple(_link(key, node) for key, node in _entries(sections.get("linked"))),
        depths=tuple(_depth_rule(key, node, prefixes[0]) for key, node in _entries(sections.get("depth"))),
        config=tuple(_config_rule(key, node) for key, node in _entries(sections.get("config"))),
        units=tuple(_units_rule(key, node) for key, node in _entries(sections.get("units"))),
        covers=tuple(_requirement(key, node) for key, node in _entries(sections.get("covers"))),
        requires=tuple(_requirement(key, node) for key, node in _entries(sections.get("requires"))),
        notes=tuple(_requirement(key, node) for key, node in _entries(sections.get("notes"))),
        tensors=tuple(_tensor_rule(key, node, prefixes[0]) for key, node in _entries(sections["tensors"])),
    )
    _check_names(recipe, sections)
    return replace(recipe, implied=tuple(implied_rules(recipe)))


def parse_match(node: Node | None) -> tuple[dict[str, tuple[str, ...]], Expression | None, tuple[Pattern, ...]]:
    """Parse the section `match` into values of config keys, a condition on the config, and patterns of tensor names."""
    entries = {key.value: value for key, value in _entries(node)}
    when = _text(entries.pop("when")).parse(parse_expression) if "when" in entries else None
    patterns = _texts(entries.pop("tensors")) if "tensors" in entries else ()
    keys = {key: tuple(text.value for text in _texts(value)) for key, value in entries.items()}
    return keys, when, tuple(text.parse(parse_pattern) for text in patterns)


def parse_prefixes(node: Node | None) -> tuple[dict[str, str], ...]:
    """Parse `[a., b.]`, the values of the word `prefix`, or a list of mappings that each set several words together.

    A composite that is saved without a head has the same names without the `model.` in front of them.
    """
    if node is None:
        return ({"prefix": ""},)
    nodes = node.nodes if isinstance(node, Items) else (node,)
    if not nodes:
        raise node.error("expected at least one prefix")
    prefixes: list[dict[str, str]] = []
    for item in nodes:
        pairs = item.pairs if isinstance(item, Entries) else ((None, item),)
        for key, _ in pairs:
            if key is not None:
                _check_identifier(key)
        prefixes.append({key.value if key else "prefix": _text(text).value for key, text in pairs})
        if set(prefixes[-1]) != set(prefixes[0]):
            raise item.error(f"expected the same words as in the first entry: {', '.join(prefixes[0])}")
    if "prefix" not in prefixes[0]:
        bare = [{word: text.removeprefix("model.") for word, text in words.items()} for words in prefixes]
        prefixes += [words for words in bare if words not in prefixes]
    return tuple(prefixes)


def _widen(node: Node | None, groups: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    names = [text.value for text in _texts(node)] if node is not None else []
    return tuple(axis for name in names for axis in groups.get(name, (name,)))


def _definition(key: Text, node: Node) -> tuple[str, Expression, Text]:
    text = _text(node)
    return key.value, text.parse(parse_expression), text


def _axis(key: Text, node: Node) -> AxisRule:
    if key.as_written:
        _check_identifier(key)
    entries = node.pairs if isinstance(node, Entries) else ()
    for name, _ in entries:
        if name.value not in _AXIS_WORDS:
            raise name.error(f"unknown key `{name.value}`", hint=f"an axis can have {listed(_AXIS_WORDS)}")
    words = {name.value: inner for name, inner in entries} if isinstance(node, Entries) else {"size": node}
    if "size" not in words:
        raise key.error(f"the axis `{key.value}` has no `size`")
    size = _text(words["size"])
    kind: Expression | Literal["shapes", "varies"]
    if size.value in ("from shapes", "varies"):
        kind = "shapes" if size.value == "from shapes" else "varies"
    else:
        kind = size.parse(parse_expression)
    rule = AxisRule(
        key.value,
        kind,
        _optional_text(words.get("about")),
        size,
        _flag(words.get("uneven")),
        _eps(words.get("eps")),
        _one_of(ROTARY, words.get("rotary"), "order of rotary positions"),
        _one_of(NORMS, words.get("norm"), "norm"),
        _one_of(SINUSOIDAL, words.get("sinusoidal"), "order of sinusoids"),
        _one_of(ORDERS, words.get("order"), "order of copies") or "interleaved",  # type: ignore[arg-type]
    )
    if rule.is_spread and rule.order == "tiled":
        raise words["order"].error(f"the units of `{key.value}` have frequencies, so they cannot be tiled")
    return rule


def _eps(node: Node | None) -> tuple[str, ...] | float | None:
    """Parse the config key of an eps, several keys, or its value."""
    if node is None:
        return None
    texts = [_text(inner) for inner in (node.nodes if isinstance(node, Items) else (node,))]
    if not isinstance(node, Items):
        with suppress(ValueError):
            return float(texts[0].value)
    for text in texts:
        if not isinstance(text.parse(parse_expression), Name):
            raise text.error("expected the config key of the norms' eps, or its value")
    return tuple(text.value for text in texts)


def _one_of(known: tuple[str, ...], node: Node | None, what: str) -> str | None:
    if node is None:
        return None
    text = _text(node)
    if text.value not in known:
        raise text.error(f"unknown {what} `{text.value}`", hint=f"known: {', '.join(known)}")
    return text.value


def _requirement(key: Text, node: Node) -> Requirement:
    return Requirement(key.parse(parse_expression), _text(node).value, key)


def _flag(node: Node | None) -> bool:
    if node is None:
        return False
    text = _text(node)
    if text.value not in ("true", "false"):
        raise text.error(f"expected `true` or `false`, found `{text.value}`")
    return text.value == "true"


def _link(key: Text, node: Node) -> Link:
    text = _text(node)
    return Link(key.value, tuple(factor.strip() for factor in text.value.split("*")), text)


_ITEM = re.compile(r"[^\[\]]+(\[\d+\])+")
_DEPTH_KEYS = ("size", "names", "about", "every", "unmoved")


def _depth_rule(key: Text, node: Node, prefixes: Mapping[str, str]) -> DepthRule:
    if key.as_written:
        _check_identifier(key)
    entries = {name.value: value for name, value in _entries(node)}
    for name, _ in _entries(node):
        if name.value not in _DEPTH_KEYS:
            raise name.error(f"unknown key `{name.value}`", hint=f"a stack of blocks has {listed(_DEPTH_KEYS)}")
    if "size" not in entries or "names" not in entries:
        raise node.error("a stack of blocks needs both `size` and `names`")
    size, names = _text(entries["size"]), _text(entries["names"])
    expression = size.parse(parse_expression)
    if next(names_in(expression), None) is None:
        raise size.error("the number of blocks must be a key of the config")
    blocks = names.parse(lambda text: parse_pattern(text, prefixes))
    if blocks.num_wildcards != 1 or blocks.parts[-1] is not STAR:
        raise names.error("expected the beginning of a block's tensor names up to its number, such as `layers.*`")
    every = _texts(entries["every"]) if "every" in entries else ()
    return DepthRule(
        name=key.value,
        size=expression,
        blocks=blocks,
        about=_optional_text(entries.get("about")),
        every=tuple((text.parse(parse_expression), text) for text in every),
        unmoved=_text(entries["unmoved"]) if "unmoved" in entries else None,
        text=key,
    )


def _tie(node: Node | None, prefixes: Mapping[str, str]) -> TieRule | None:
    if node is None or (isinstance(node, Text) and node.is_null):
        return None
    entries = {key.value: value for key, value in _entries(node)}
    for key, _ in _entries(node):
        if key.value not in ("when", "ways", "shares"):
            raise key.error(f"unknown key `{key.value}`", hint="`tie` has `when`, `ways` and `shares`")
    if "when" not in entries or "ways" not in entries:
        raise node.error("`tie` needs both `when` and `ways`")
    when = _text(entries["when"])
    ways = _texts(entries["ways"])
    for way in ways:
        if way.value not in TIES:
            raise way.error(f"unknown way `{way.value}` to treat a tied readout", hint=f"known: {', '.join(TIES)}")
    pairs = []
    for key, source in _entries(entries.get("shares")):
        for text in (key, _text(source)):
            pattern = text.parse(lambda text: parse_pattern(text, prefixes))
            if not all(isinstance(part, (str, Prefix)) for part in pattern.parts):
                raise text.error("expected the name of a single tensor")
        pairs.append((key.value, _text(source).value))
    if any(way.value == "untie" for way in ways) and not pairs:
        raise node.error("`untie` needs `shares`, the tensors that share the data of another tensor")
    return TieRule(when.parse(parse_expression), tuple(way.value for way in ways), tuple(pairs), when)


def _parameter_rules(key: Text, node: Node, prefixes: Mapping[str, str]) -> Iterator[ParameterRule]:
    """Yield a rule for each name that a pattern maps to; its `*` repeat what the pattern's `*` or `**` matched."""
    pattern = key.parse(lambda text: parse_pattern(text, prefixes))
    for item in node.nodes if isinstance(node, Items) else (node,):
        dims = None
        names: tuple[Node, ...] = (item,)
        if isinstance(item, Entries):
            entries = {key.value: value for key, value in item}
            if set(entries) != {"name", "dims"}:
                raise item.error("a parameter of another shape needs exactly `name` and `dims`")
            names = _texts(entries["name"])
            dims = _choice(entries["dims"], "dims", _layout)
        wildcards = sum(part in (STAR, REST) for part in pattern.parts)
        for position, name in enumerate(names):
            template = _template(_text(name), prefixes, wildcards)
            yield ParameterRule(pattern, template, dims, (position, len(names)))


def _template(text: Text, prefixes: Mapping[str, str], wildcards: int) -> str:
    """Turn a name with prefixes and `*` into a format string that numbers the `*`."""
    parts = text.parse(lambda text: parse_pattern(text, prefixes)).parts
    numbers = itertools.count()
    pieces = []
    for part in parts:
        if isinstance(part, str):
            pieces.append(part)
        elif isinstance(part, Prefix):
            pieces.append(f"{{{part.word}}}")
        elif part is STAR:
            pieces.append(f"{{_{next(numbers)}}}")
        else:
            raise text.error("a parameter's name may contain only text, prefixes and `*`")
    if (count := next(numbers)) != wildcards:
        raise text.error(f"this name has {count} `*`, but the pattern on the left has {wildcards}")
    return "".join(pieces)


def _tensor_rule(key: Text, node: Node, prefixes: Mapping[str, str]) -> TensorRule:
    pattern = key.parse(lambda text: parse_pattern(text, prefixes))
    return TensorRule(pattern, _choices(node, "dims", _layout), key)


def _layout(text: Text) -> Layout | Keep | Omit:
    if text.value in ("keep", "omit"):
        return text.value  # type: ignore[return-value]
    return text.parse(parse_layout)


def _config_rule(key: Text, node: Node) -> ConfigRule:
    name = key.value.removesuffix("?")
    if "[" in name and not _ITEM.fullmatch(name):
        raise key.error("expected the places of an item at the end, as in `sizes[0]`")
    choices = _choices(node, "value", lambda text: text.parse(parse_scaled_expression))
    return ConfigRule(name, name != key.value, choices, key)


def _units_rule(key: Text, node: Node) -> UnitsRule:
    """Parse `KEY: TEMPLATE`, or `KEY in FILE: TEMPLATE` for another file than config.json."""
    name, _, file = key.value.partition(" in ")
    text = _text(node)
    return UnitsRule(name, file or None, text.parse(parse_template), text)


def _choices(node: Node, word: str, parse: Callable[[Text], T]) -> tuple[Choice[T], ...]:
    nodes = node.nodes if isinstance(node, Items) else (node,)
    if not nodes:
        raise node.error("expected at least one alternative")
    choices = tuple(_choice(item, word, parse) for item in nodes)
    for choice in choices[:-1]:
        if choice.when is None:
            raise choice.text.error("the alternatives after this one are never used", hint="move it to the end")
    return choices


def _choice(node: Node, word: str, parse: Callable[[Text], T]) -> Choice[T]:
    if not isinstance(node, Entries):
        text = _text(node)
        return Choice(None, parse(text), text)
    for key, _ in node:
        if key.value not in ("when", word):
            raise key.error(f"unknown key `{key.value}`", hint=f"an alternative has `when` and `{word}`")
    when, value = node.get("when"), node.get(word)
    if when is None or value is None:
        raise node.error(f"an alternative needs both `when` and `{word}`")
    text, condition = _text(value), _text(when)
    return Choice(condition.parse(parse_expression), parse(text), text, condition)


# Names that must be known ---------------------------------------------------------------------


def _check_names(recipe: Recipe, sections: dict[str, Node]) -> None:
    axes = set(recipe.axis_names)

    def check_axis(name: str, text: Text, span: tuple[int, int] | None = None) -> None:
        if name not in axes:
            raise text.error(f"unknown axis `{name}`", span, suggest(name, axes))

    if "widen" in sections:
        for text in _texts(sections["widen"]):
            if text.value in recipe.groups:
                continue
            check_axis(text.value, text)
            if text.value in recipe.fixed:
                raise text.error(f"the axis `{text.value}` is in both `widen` and `fixed`")
    for key in _fixed_axes(recipe, sections):
        check_axis(key.value, key)
    for key, _ in _entries(sections.get("linked")):
        check_axis(key.value, key)
    for link in recipe.links:
        for name in link.product:
            check_axis(name, link.text)
    stacks = {rule.name for rule in recipe.depths}
    mentioned = set()
    for text, axis, span in _axis_mentions(recipe):
        if axis not in stacks:
            check_axis(axis, text, span)
        mentioned.add(axis)
    for key, _ in _entries(sections["axes"]):
        if key.value not in mentioned:
            raise key.error(f"no tensor uses the axis `{key.value}`", hint="remove it, or use it in a tensor")


def _fixed_axes(recipe: Recipe, sections: dict[str, Node]) -> Iterator[Text]:
    """Yield the names in `fixed` that are no stacks of blocks."""
    stacks = {rule.name for rule in recipe.depths}
    for rule in recipe.depths:
        if rule.name in recipe.axis_names:
            raise rule.text.error(f"`{rule.name}` is the name of an axis")
    return (key for key, _ in _entries(sections.get("fixed")) if key.value not in stacks)


def _axis_mentions(recipe: Recipe) -> Iterator[tuple[Text, str, tuple[int, int]]]:
    """Yield every axis or stack that a tensor or a value mentions, with its text and its span there."""
    for rule in recipe.tensors:
        for part in rule.pattern.axes:
            for name in part.names:
                yield rule.text, name, part.span
        for choice in rule.choices:
            if isinstance(choice.value, Layout):
                for ref in axis_refs(choice.value):
                    name = ref.axis if isinstance(ref, Power) else ref.name
                    yield choice.text, name, ref.span
    for config_rule in recipe.config:
        for config_choice in config_rule.choices:
            for power in config_choice.value[1]:
                yield config_choice.text, power.axis, power.span
    for units_rule in recipe.units:
        for unit in units_in(units_rule.template):
            yield units_rule.text, unit.name, unit.span


# Nodes to values ------------------------------------------------------------------------------


def _entries(node: Node | None) -> Entries | tuple[()]:
    if node is None or (isinstance(node, Text) and node.is_null):
        return ()
    if not isinstance(node, Entries):
        raise node.error("expected a mapping")
    return node


def _text(node: Node) -> Text:
    if not isinstance(node, Text):
        raise node.error("expected a single value, not a list or a mapping")
    return node


def _optional_text(node: Node | None) -> str:
    return "" if node is None else _text(node).value


def _texts(node: Node) -> tuple[Text, ...]:
    nodes = node.nodes if isinstance(node, Items) else (node,)
    return tuple(_text(item) for item in nodes)


def _check_identifier(text: Text) -> None:
    if not text.value.isidentifier():
        raise text.error(
            f"`{text.value}` is not a valid name", hint="use letters, digits and `_`, and no digit at the start"
        )


def _measured(node: Entries, prefixes: Mapping[str, str]) -> MeasuredDefault:
    """Parse `{shape: PATTERN, dim: 1}`, a default that is a dimension of a tensor, the first one if `dim` is absent."""
    entries = {key.value: value for key, value in node}
    if "shape" not in entries or not entries.keys() <= {"shape", "dim"}:
        raise node.error("expected a value, or `shape` with the name of a tensor, and maybe `dim`")
    pattern = _text(entries["shape"]).parse(lambda text: parse_pattern(text, prefixes))
    if pattern.num_wildcards > 1:
        raise node.error("expected the name of a tensor with at most one `*`")
    dim = _text(entries["dim"]) if "dim" in entries else None
    if dim is not None and not dim.value.isdecimal():
        raise dim.error("expected the number of a dimension; 0 is the first")
    return MeasuredDefault(pattern, int(dim.value) if dim else 0)


def _plain(node: Node) -> object:
    """Convert a default to the JSON value that it denotes: null, a boolean, a number, a string or a list of these."""
    if isinstance(node, Items):
        return [_plain(item) for item in node.nodes]
    text = _text(node)
    if text.quoted:
        return text.value
    words: dict[str, object] = {"true": True, "false": False, "null": None, "~": None, "": None}
    if text.value in words:
        return words[text.value]
    for number in (int, float):
        try:
            return number(text.value)
        except ValueError:
            continue
    return text.value

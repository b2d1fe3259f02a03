"""Parse a recipe's document into a `Recipe`; a mistake raises a `RecipeError` that points at the line and the token."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Literal

from mupscale_cli.architecture.document import Entries, Items, Node, Text
from mupscale_cli.architecture.expressions import Expression, Name, names_in, parse_expression
from mupscale_cli.architecture.implied import implied_rules
from mupscale_cli.architecture.mentions import check_names
from mupscale_cli.architecture.nodes import (
    check_identifier,
    entries_of,
    flag_of,
    one_of,
    optional_text,
    plain_value,
    text_of,
    texts_of,
)
from mupscale_cli.architecture.patterns import STAR, Pattern, Prefix, parse_pattern
from mupscale_cli.architecture.rules import (
    parse_config_rule,
    parse_parameter_rules,
    parse_tensor_rule,
    parse_units_rule,
)
from mupscale_cli.architecture.types import (
    NORMS,
    ORDERS,
    ROTARY,
    SINUSOIDAL,
    TIES,
    AxisRule,
    DepthRule,
    Link,
    MeasuredDefault,
    Recipe,
    Requirement,
    TieRule,
)
from mupscale_cli.errors import RecipeError
from mupscale_cli.text import listed, suggest

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
    defaults = entries_of(sections.get("defaults"))
    recipe = Recipe(
        name=name,
        file=file,
        digest=digest,
        about=optional_text(sections.get("about")),
        keys=keys,
        tensor_patterns=tensor_patterns,
        condition=condition,
        parameters=tuple(
            rule
            for key, node in entries_of(sections.get("parameters"))
            for rule in parse_parameter_rules(key, node, prefixes[0])
        ),
        tie=_tie(sections.get("tie"), prefixes[0]),
        prefixes=prefixes,
        groups=groups,
        defaults={key.value: plain_value(node) for key, node in defaults if not isinstance(node, Entries)},
        measured={key.value: _measured(node, prefixes[0]) for key, node in defaults if isinstance(node, Entries)},
        definitions=tuple(_definition(key, node) for key, node in entries_of(sections.get("define"))),
        axes=tuple(_axis(key, node) for key, node in entries_of(sections["axes"])),
        widen=_widen(sections.get("widen"), groups),
        fixed={key.value: text_of(node).value for key, node in entries_of(sections.get("fixed"))},
        links=tuple(_link(key, node) for key, node in entries_of(sections.get("linked"))),
        depths=tuple(_depth_rule(key, node, prefixes[0]) for key, node in entries_of(sections.get("depth"))),
        config=tuple(parse_config_rule(key, node) for key, node in entries_of(sections.get("config"))),
        units=tuple(parse_units_rule(key, node) for key, node in entries_of(sections.get("units"))),
        covers=tuple(_requirement(key, node) for key, node in entries_of(sections.get("covers"))),
        requires=tuple(_requirement(key, node) for key, node in entries_of(sections.get("requires"))),
        notes=tuple(_requirement(key, node) for key, node in entries_of(sections.get("notes"))),
        tensors=tuple(parse_tensor_rule(key, node, prefixes[0]) for key, node in entries_of(sections["tensors"])),
    )
    check_names(recipe, sections)
    return replace(recipe, implied=tuple(implied_rules(recipe)))


def parse_match(node: Node | None) -> tuple[dict[str, tuple[str, ...]], Expression | None, tuple[Pattern, ...]]:
    """Parse the section `match` into values of config keys, a condition on the config, and patterns of tensor names."""
    entries = {key.value: value for key, value in entries_of(node)}
    when = text_of(entries.pop("when")).parse(parse_expression) if "when" in entries else None
    patterns = texts_of(entries.pop("tensors")) if "tensors" in entries else ()
    keys = {key: tuple(text.value for text in texts_of(value)) for key, value in entries.items()}
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
                check_identifier(key)
        prefixes.append({key.value if key else "prefix": text_of(text).value for key, text in pairs})
        if set(prefixes[-1]) != set(prefixes[0]):
            raise item.error(f"expected the same words as in the first entry: {', '.join(prefixes[0])}")
    if "prefix" not in prefixes[0]:
        bare = [{word: text.removeprefix("model.") for word, text in words.items()} for words in prefixes]
        prefixes += [words for words in bare if words not in prefixes]
    return tuple(prefixes)


def _widen(node: Node | None, groups: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    names = [text.value for text in texts_of(node)] if node is not None else []
    return tuple(axis for name in names for axis in groups.get(name, (name,)))


def _definition(key: Text, node: Node) -> tuple[str, Expression, Text]:
    text = text_of(node)
    return key.value, text.parse(parse_expression), text


def _axis(key: Text, node: Node) -> AxisRule:
    if key.as_written:
        check_identifier(key)
    entries = node.pairs if isinstance(node, Entries) else ()
    for name, _ in entries:
        if name.value not in _AXIS_WORDS:
            raise name.error(f"unknown key `{name.value}`", hint=f"an axis can have {listed(_AXIS_WORDS)}")
    words = {name.value: inner for name, inner in entries} if isinstance(node, Entries) else {"size": node}
    if "size" not in words:
        raise key.error(f"the axis `{key.value}` has no `size`")
    size = text_of(words["size"])
    kind: Expression | Literal["shapes", "varies"]
    if size.value in ("from shapes", "varies"):
        kind = "shapes" if size.value == "from shapes" else "varies"
    else:
        kind = size.parse(parse_expression)
    rule = AxisRule(
        key.value,
        kind,
        optional_text(words.get("about")),
        size,
        flag_of(words.get("uneven")),
        _eps(words.get("eps")),
        one_of(ROTARY, words.get("rotary"), "order of rotary positions"),
        one_of(NORMS, words.get("norm"), "norm"),
        one_of(SINUSOIDAL, words.get("sinusoidal"), "order of sinusoids"),
        one_of(ORDERS, words.get("order"), "order of copies") or "interleaved",  # type: ignore[arg-type]
    )
    if rule.is_spread and rule.order == "tiled":
        raise words["order"].error(f"the units of `{key.value}` have frequencies, so they cannot be tiled")
    return rule


def _eps(node: Node | None) -> tuple[str, ...] | float | None:
    """Parse the config key of an eps, several keys, or its value."""
    if node is None:
        return None
    texts = [text_of(inner) for inner in (node.nodes if isinstance(node, Items) else (node,))]
    if not isinstance(node, Items):
        with suppress(ValueError):
            return float(texts[0].value)
    for text in texts:
        if not isinstance(text.parse(parse_expression), Name):
            raise text.error("expected the config key of the norms' eps, or its value")
    return tuple(text.value for text in texts)


def _requirement(key: Text, node: Node) -> Requirement:
    return Requirement(key.parse(parse_expression), text_of(node).value, key)


def _link(key: Text, node: Node) -> Link:
    text = text_of(node)
    return Link(key.value, tuple(factor.strip() for factor in text.value.split("*")), text)


_DEPTH_KEYS = ("size", "names", "about", "every", "unmoved")


def _depth_rule(key: Text, node: Node, prefixes: Mapping[str, str]) -> DepthRule:
    if key.as_written:
        check_identifier(key)
    entries = {name.value: value for name, value in entries_of(node)}
    for name, _ in entries_of(node):
        if name.value not in _DEPTH_KEYS:
            raise name.error(f"unknown key `{name.value}`", hint=f"a stack of blocks has {listed(_DEPTH_KEYS)}")
    if "size" not in entries or "names" not in entries:
        raise node.error("a stack of blocks needs both `size` and `names`")
    size, names = text_of(entries["size"]), text_of(entries["names"])
    expression = size.parse(parse_expression)
    if next(names_in(expression), None) is None:
        raise size.error("the number of blocks must be a key of the config")
    blocks = names.parse(lambda text: parse_pattern(text, prefixes))
    if blocks.num_wildcards != 1 or blocks.parts[-1] is not STAR:
        raise names.error("expected the beginning of a block's tensor names up to its number, such as `layers.*`")
    every = texts_of(entries["every"]) if "every" in entries else ()
    return DepthRule(
        name=key.value,
        size=expression,
        blocks=blocks,
        about=optional_text(entries.get("about")),
        every=tuple((text.parse(parse_expression), text) for text in every),
        unmoved=text_of(entries["unmoved"]) if "unmoved" in entries else None,
        text=key,
    )


def _tie(node: Node | None, prefixes: Mapping[str, str]) -> TieRule | None:
    if node is None or (isinstance(node, Text) and node.is_null):
        return None
    entries = {key.value: value for key, value in entries_of(node)}
    for key, _ in entries_of(node):
        if key.value not in ("when", "ways", "shares"):
            raise key.error(f"unknown key `{key.value}`", hint="`tie` has `when`, `ways` and `shares`")
    if "when" not in entries or "ways" not in entries:
        raise node.error("`tie` needs both `when` and `ways`")
    when = text_of(entries["when"])
    ways = texts_of(entries["ways"])
    for way in ways:
        if way.value not in TIES:
            raise way.error(f"unknown way `{way.value}` to treat a tied readout", hint=f"known: {', '.join(TIES)}")
    pairs = []
    for key, source in entries_of(entries.get("shares")):
        for text in (key, text_of(source)):
            pattern = text.parse(lambda text: parse_pattern(text, prefixes))
            if not all(isinstance(part, (str, Prefix)) for part in pattern.parts):
                raise text.error("expected the name of a single tensor")
        pairs.append((key.value, text_of(source).value))
    if any(way.value == "untie" for way in ways) and not pairs:
        raise node.error("`untie` needs `shares`, the tensors that share the data of another tensor")
    return TieRule(when.parse(parse_expression), tuple(way.value for way in ways), tuple(pairs), when)


def _measured(node: Entries, prefixes: Mapping[str, str]) -> MeasuredDefault:
    """Parse `{shape: PATTERN, dim: 1}`, a default that is a dimension of a tensor, the first one if `dim` is absent."""
    entries = {key.value: value for key, value in node}
    if "shape" not in entries or not entries.keys() <= {"shape", "dim"}:
        raise node.error("expected a value, or `shape` with the name of a tensor, and maybe `dim`")
    pattern = text_of(entries["shape"]).parse(lambda text: parse_pattern(text, prefixes))
    if pattern.num_wildcards > 1:
        raise node.error("expected the name of a tensor with at most one `*`")
    dim = text_of(entries["dim"]) if "dim" in entries else None
    if dim is not None and not dim.value.isdecimal():
        raise dim.error("expected the number of a dimension; 0 is the first")
    return MeasuredDefault(pattern, int(dim.value) if dim else 0)

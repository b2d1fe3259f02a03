"""Parse the rules of a recipe for tensors, parameters, config keys and the units that they name."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from mupscale_cli.architecture.document import Entries, Items, Node, Text
from mupscale_cli.architecture.expressions import parse_expression
from mupscale_cli.architecture.layouts import Layout, parse_layout, parse_scaled_expression
from mupscale_cli.architecture.nodes import text_of, texts_of
from mupscale_cli.architecture.patterns import REST, STAR, Prefix, parse_pattern
from mupscale_cli.architecture.types import (
    Choice,
    ConfigRule,
    Keep,
    Omit,
    ParameterRule,
    TensorRule,
    UnitsRule,
)
from mupscale_cli.architecture.units import parse_template

_ITEM = re.compile(r"[^\[\]]+(\[\d+\])+")
T = TypeVar("T")


def parse_tensor_rule(key: Text, node: Node, prefixes: Mapping[str, str]) -> TensorRule:
    """Parse `PATTERN: LAYOUT`, or alternatives of layouts."""
    pattern = key.parse(lambda text: parse_pattern(text, prefixes))
    return TensorRule(pattern, _choices(node, "dims", _layout), key)


def parse_config_rule(key: Text, node: Node) -> ConfigRule:
    """Parse `KEY: EXPRESSION`, or alternatives of expressions, for a key or an item of a list."""
    name = key.value.removesuffix("?")
    if "[" in name and not _ITEM.fullmatch(name):
        raise key.error("expected the places of an item at the end, as in `sizes[0]`")
    choices = _choices(node, "value", lambda text: text.parse(parse_scaled_expression))
    return ConfigRule(name, name != key.value, choices, key)


def parse_units_rule(key: Text, node: Node) -> UnitsRule:
    """Parse `KEY: TEMPLATE`, or `KEY in FILE: TEMPLATE` for another file than config.json."""
    name, _, file = key.value.partition(" in ")
    text = text_of(node)
    return UnitsRule(name, file or None, text.parse(parse_template), text)


def parse_parameter_rules(key: Text, node: Node, prefixes: Mapping[str, str]) -> Iterator[ParameterRule]:
    """Yield a rule for each name that a pattern maps to; its `*` repeat what the pattern's `*` or `**` matched."""
    pattern = key.parse(lambda text: parse_pattern(text, prefixes))
    for item in node.nodes if isinstance(node, Items) else (node,):
        dims = None
        names: tuple[Node, ...] = (item,)
        if isinstance(item, Entries):
            entries = {key.value: value for key, value in item}
            if set(entries) != {"name", "dims"}:
                raise item.error("a parameter of another shape needs exactly `name` and `dims`")
            names = texts_of(entries["name"])
            dims = _choice(entries["dims"], "dims", _layout)
        wildcards = sum(part in (STAR, REST) for part in pattern.parts)
        for position, name in enumerate(names):
            template = _template(text_of(name), prefixes, wildcards)
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


def _layout(text: Text) -> Layout | Keep | Omit:
    if text.value in ("keep", "omit"):
        return text.value  # type: ignore[return-value]
    return text.parse(parse_layout)


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
        text = text_of(node)
        return Choice(None, parse(text), text)
    for key, _ in node:
        if key.value not in ("when", word):
            raise key.error(f"unknown key `{key.value}`", hint=f"an alternative has `when` and `{word}`")
    when, value = node.get("when"), node.get(word)
    if when is None or value is None:
        raise node.error(f"an alternative needs both `when` and `{word}`")
    text, condition = text_of(value), text_of(when)
    return Choice(condition.parse(parse_expression), parse(text), text, condition)

"""Write a drafted recipe in the language of recipes."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from mupscale_cli.architecture.loading import FORMAT_VERSION
from mupscale_cli.infer.draft import Draft, ordered
from mupscale_cli.infer.rules import rule_lines, tensor_rules
from mupscale_cli.infer.vocabulary import ABOUT, kind_of


def recipe_text(draft: Draft) -> str:
    """Return the YAML of a draft, with its sections in the order of the built-in recipes."""
    used = set().union(*(variant.axes for variant in draft.variants))
    names = [name for name in ordered(draft.axes) if name in used or name not in draft.axes.aliases]
    config = _config(draft, names)
    defaults = {key: json.dumps(value) for key, value in _defaults(draft, config, names).items()}
    fixed = {name: json.dumps(reason) for name, reason in draft.fixed.items() if name in names}
    links = {alias: " * ".join(product) for alias, product in draft.axes.aliases.items() if alias in names}
    blocks = [
        [f"version: {FORMAT_VERSION}", f"about: drafted for {draft.name}"],
        ["match:", *(f"  {key}: [{', '.join(values)}]" for key, values in draft.match.items())] if draft.match else [],
        _section("defaults", defaults),
        _section("define", {"tied_readout": _quoted(_tie_condition(draft))} if draft.tied and draft.untied else {}),
        ["axes:", *(_axis_line(draft, name) for name in names)],
        [f"widen: [{', '.join(name for name in draft.widen if name in names)}]"],
        _section("fixed", fixed),
        _tie(draft),
        _section("linked", links),
        *_depth(draft),
        _section("covers", {json.dumps(key): json.dumps(reason) for key, reason in draft.covers.items()}),
        _section("requires", {json.dumps(key): json.dumps(reason) for key, reason in draft.words.requires.items()}),
        _section("config", {key: _quoted(value) for key, value in config.items()}),
        ["tensors:", *rule_lines(tensor_rules(draft))],
    ]
    header = "".join(f"# {line}\n" for line in draft.header)
    return header + "\n".join("\n".join([*block, ""]) for block in blocks if block)


def _section(title: str, entries: Mapping[str, str]) -> list[str]:
    return [f"{title}:", *(f"  {key}: {value}" for key, value in entries.items())] if entries else []


def _tie(draft: Draft) -> list[str]:
    """Return the section that lists tensors with several names; a file may have any of them."""
    if not draft.shares:
        return []
    pairs = (f"    {_quoted(name)}: {_quoted(kept)}" for name, kept in draft.shares.items())
    return ["tie:", '  when: "true"', "  ways: [fold]", "  shares:", *pairs]


def _tie_condition(draft: Draft) -> str:
    condition = "tie_word_embeddings"
    if draft.head:
        condition += f' and (not architectures or architectures ~ "{draft.head}")'
    return condition


def _axis_line(draft: Draft, name: str) -> str:
    size, words = _quoted(draft.axes.sizes[name]), draft.words
    eps = f", eps: {words.eps[name]}" if name in words.eps else ""
    rotary = f", rotary: {words.rotary[name]}" if name in words.rotary else ""
    return f"  {name}: {{size: {size}{eps}{rotary}, about: {_quoted(ABOUT.get(kind_of(name)) or f'units of {size}')}}}"


def _depth(draft: Draft) -> tuple[list[str], ...]:
    """Return the sections about the stack of blocks."""
    stack = draft.words.stack
    if stack is None:
        return ()
    depth = [
        "depth:",
        "  layers:",
        f"    size: {stack.size}",
        f"    names: {_quoted(stack.names)}",
        "    about: blocks",
    ]
    units = dict.fromkeys(stack.lists, "[. per layers]") | dict.fromkeys(stack.numbers, "[like layers]")
    return depth, _section("units", {key: _quoted(text) for key, text in units.items()})


def _quoted(text: str) -> str:
    """Quote a YAML value that would not be read as this text."""
    return json.dumps(text) if re.search(r"[,:#{}\[\]\"]|^[*&!|>%@`]", text) else text


def _config(draft: Draft, names: Sequence[str]) -> dict[str, str]:
    """Return the wide value of every config key that an axis moves, as an expression."""
    powers: dict[str, dict[str, int]] = defaultdict(dict)
    for axis in draft.axes.candidates:
        for key, power in axis.keys:
            powers[key][axis.name] = power
    for variant in draft.variants:
        for name, key, power in variant.state.keys:
            if name not in draft.fixed:
                powers[key][name] = power
    sizes = draft.axes.independent_sizes
    result = {}
    for key, moved in powers.items():
        used = {name: power for name, power in moved.items() if name in names}
        alias = next((a for a, product in draft.axes.aliases.items() if set(product) == set(used)), None)
        product = math.prod(sizes.get(name, 1) for name in used)
        if alias in names and draft.axes.sizes.get(alias or "") == key:
            result[key] = str(alias)
        elif draft.config[key] == product and all(power == 1 for power in used.values()) and used:
            result[key] = " * ".join(name for name in ordered(draft.axes) if name in used)
        else:
            free = {name: power for name, power in used.items() if name not in draft.fixed}
            if free:
                result[key] = f"{key} | " + " ".join(n if p == 1 else f"{n}^{p}" for n, p in free.items())
    return result


def _defaults(draft: Draft, config: Mapping[str, str], names: Sequence[str]) -> dict[str, Any]:
    """Return the defaults of the keys that the recipe reads; config.json may leave them out."""
    words = draft.words
    more = [*draft.covers, *words.eps.values(), *([words.stack.size] if words.stack else ())]
    text = " ".join([*config.values(), *(draft.axes.sizes[name] for name in names), *more])
    keys = dict.fromkeys(re.findall(r"[A-Za-z_][\w.]*", text))
    defaults = {key: draft.defaults[key] for key in keys if draft.defaults.get(key) is not None}
    if draft.tied and draft.untied:
        defaults["tie_word_embeddings"] = bool(draft.defaults.get("tie_word_embeddings", False))
    return {key: value for key, value in defaults.items() if isinstance(value, (int, float, str, bool))}

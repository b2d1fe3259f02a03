"""A drafted recipe as text in the language of recipes."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mupscale_cli.architecture.loading import FORMAT_VERSION
from mupscale_cli.infer.axes import Axes
from mupscale_cli.infer.candidates import Choice, Form, Group, layout_text
from mupscale_cli.infer.trials import State
from mupscale_cli.infer.vocabulary import ABOUT, BY_NAME

_WIDTH = 120


@dataclass(frozen=True)
class Variant:
    """One setting of the config and what holds under it.

    Attributes:
        groups: the tensors.
        state: the choices.
    """

    groups: tuple[Group, ...]
    state: State


@dataclass(frozen=True)
class Draft:
    """Everything that a recipe says.

    Attributes:
        name: of the model type, or of the user's function.
        model_types: for the `match` section.
        tensors: for the `match` section where there is no model type.
        axes: those found.
        fixed: axes that do not move, with the reason.
        config: of the tiny model.
        defaults: what the config class gives to absent keys.
        tied: what holds where the readout shares the embedding's tensor; None if that was not tried.
        untied: what holds where it does not.
        head: the class that has the readout, for the condition.
        header: lines on how it was verified.
    """

    name: str
    model_types: tuple[str, ...]
    axes: Axes
    fixed: dict[str, str]
    config: dict[str, Any]
    defaults: dict[str, Any]
    tied: Variant | None
    untied: Variant | None
    head: str = ""
    header: tuple[str, ...] = ()

    @property
    def variants(self) -> tuple[Variant, ...]:
        return tuple(variant for variant in (self.untied, self.tied) if variant)

    @property
    def widen(self) -> tuple[str, ...]:
        """What a bare factor widens."""
        free = [name for name in _ordered(self.axes) if name not in self.fixed]
        usual = [name for name in free if not BY_NAME.fullmatch(name)]
        for alias, product in self.axes.aliases.items():
            moving = [name for name in product if name in free and name in usual]
            if alias in usual and not moving:
                # The heads are fixed: what the residual stream is a product of moves with the size of one.
                usual += [name for name in product if name in free][:1]
            if len(moving) > 1:
                usual = [name for name in usual if name not in moving[1:]]
        return tuple(usual)


def _ordered(axes: Axes) -> list[str]:
    """Names in an order in which every size can be computed; the residual stream first."""
    names = [*axes.aliases, *(idea.name for idea in axes.ideas)]
    order = ("embed", "kv", "h", "g", "d", "ffn")
    return sorted(names, key=lambda name: order.index(name) if name in order else len(order))


def recipe_text(draft: Draft) -> str:
    """The YAML of a draft, in the order of sections that recipes have."""
    rules = _rules(draft)
    mentioned = mentioned_axes(draft.variants)
    names = [name for name in _ordered(draft.axes) if name in mentioned]
    config = _config(draft, names)
    lines = [f"# {line}" for line in draft.header]
    lines += [f"version: {FORMAT_VERSION}", f"about: drafted for {draft.name}", ""]
    if draft.model_types:
        lines += ["match:", f"  model_type: [{', '.join(draft.model_types)}]", ""]
    defaults = _defaults(draft, config, names)
    if defaults:
        lines += ["defaults:", *(f"  {key}: {_plain(value)}" for key, value in defaults.items()), ""]
    if draft.tied and draft.untied:
        condition = "tie_word_embeddings"
        if draft.head:
            condition += f' and (not architectures or architectures ~ "{draft.head}")'
        lines += ["define:", f"  tied_readout: {_quoted_if_needed(condition)}", ""]
    lines += ["axes:"]
    for name in names:
        about = ABOUT.get(name)
        size = _quoted_if_needed(draft.axes.sizes[name])
        lines.append(f"  {name}: {{size: {size}, about: {_quoted_if_needed(about or f'units of {size}')}}}")
    widened = [name for name in draft.widen if name in names]
    lines += ["", f"widen: [{', '.join(widened)}]", ""]
    fixed = {name: reason for name, reason in draft.fixed.items() if name in names}
    if fixed:
        lines += ["fixed:", *(f"  {name}: {json.dumps(reason)}" for name, reason in fixed.items()), ""]
    links = {alias: product for alias, product in draft.axes.aliases.items() if alias in names}
    if links:
        lines += ["linked:", *(f"  {alias}: {' * '.join(product)}" for alias, product in links.items()), ""]
    if config:
        lines += ["config:", *(f"  {key}: {_quoted_if_needed(value)}" for key, value in config.items()), ""]
    lines += ["tensors:", *rules]
    return "\n".join(lines) + "\n"


# Config --------------------------------------------------------------------------------------------


def _config(draft: Draft, names: Sequence[str]) -> dict[str, str]:
    """What the widened config says under every key that an axis moves."""
    powers: dict[str, dict[str, int]] = defaultdict(dict)
    for idea in draft.axes.ideas:
        for key, power in idea.keys:
            powers[key][idea.name] = power
    for variant in draft.variants:
        for axis, key, power in variant.state.keys:
            if axis not in draft.fixed:
                powers[key][axis] = power
    known = {idea.name: idea.size for idea in draft.axes.ideas}
    result = {}
    for key, moved in powers.items():
        value = draft.config[key]
        used = {name: power for name, power in moved.items() if name in names}
        alias = next((a for a, product in draft.axes.aliases.items() if set(product) == set(used)), None)
        product = math.prod(known.get(name, 1) for name in used)
        if alias in names and draft.axes.sizes.get(alias or "") == key:
            result[key] = str(alias)
        elif value == product and all(power == 1 for power in used.values()) and used:
            result[key] = " * ".join(name for name in _ordered(draft.axes) if name in used)
        else:
            free = {name: power for name, power in used.items() if name not in draft.fixed}
            if free:
                result[key] = f"{key} | " + " ".join(n if p == 1 else f"{n}^{p}" for n, p in free.items())
    return result


def _defaults(draft: Draft, config: Mapping[str, str], names: Sequence[str]) -> dict[str, Any]:
    """Defaults of the keys that the recipe reads, since config.json leaves them out where they are usual."""
    text = " ".join([*config.values(), *(draft.axes.sizes[name] for name in names)])
    keys = dict.fromkeys(re.findall(r"[A-Za-z_]\w*", text))
    found = {key: draft.defaults[key] for key in keys if draft.defaults.get(key) is not None}
    if draft.tied and draft.untied:
        found["tie_word_embeddings"] = bool(draft.defaults.get("tie_word_embeddings", False))
    return {key: value for key, value in found.items() if isinstance(value, (int, float, str, bool))}


# Tensors -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Rule:
    pattern: str
    layouts: tuple[tuple[str, str], ...]  # condition, layout
    optional: bool
    comment: str


def _rules(draft: Draft) -> list[str]:
    rules = _merged(_single_rules(draft))
    single = [rule for rule in rules if len(rule.layouts) == 1]
    width = max((len(_head(rule)) + len(rule.layouts[0][1]) for rule in single if rule.comment), default=0)
    lines = []
    for rule in rules:
        head = _head(rule)
        comment = f"# {rule.comment}" if rule.comment else ""
        if len(rule.layouts) == 1:
            line = f'{head}"{rule.layouts[0][1]}"'
            lines.append(f"{line.ljust(min(width + 2, 72))}  {comment}".rstrip())
            continue
        lines.append(f"{head.rstrip()}  {comment}".rstrip())
        for condition, layout in rule.layouts:
            lines.append(f'    - {{when: {condition}, dims: "{layout}"}}' if condition else f'    - "{layout}"')
    return lines


def _head(rule: _Rule) -> str:
    return f'  "{rule.pattern}{"?" if rule.optional else ""}": '


def _single_rules(draft: Draft) -> list[_Rule]:
    layouts: dict[str, dict[str, str]] = defaultdict(dict)
    comments: dict[str, str] = {}
    optional: dict[str, bool] = {}
    for kind, variant in (("", draft.untied), ("tied", draft.tied)):
        if variant is None:
            continue
        sparse = _sparse(variant.groups)
        for group, choice in zip(variant.groups, variant.state.choices, strict=True):
            moving = {name for name in draft.axes.names if name not in draft.fixed}
            cleaned = _without(choice, moving)
            layouts[group.pattern][kind] = layout_text(group, cleaned)
            comments.setdefault(group.pattern, _comment(group, cleaned))
            optional[group.pattern] = optional.get(group.pattern, False) or group.pattern in sparse
    both = draft.tied is not None and draft.untied is not None
    rules = []
    for pattern, found in layouts.items():
        if both and len(found) == 1:
            optional[pattern] = True
        texts = [("tied_readout", found["tied"])] if both and len(set(found.values())) > 1 else []
        rest = found.get("") if both and "" in found else next(iter(found.values()))
        rules.append(_Rule(pattern, (*texts, ("", str(rest))), optional[pattern], comments[pattern]))
    return _without_needless(rules)


def _without_needless(rules: list[_Rule]) -> list[_Rule]:
    """Without rules for the last layer that say what the rule for every layer says."""
    layouts = {rule.pattern: rule.layouts for rule in rules}

    def is_needed(rule: _Rule) -> bool:
        general = rule.pattern.replace("{last}", "*", 1)
        return general == rule.pattern or layouts.get(general) != rule.layouts

    return [rule for rule in rules if is_needed(rule)]


def _without(choice: Choice, moving: set[str]) -> Choice:
    """With powers of axes that move, and no others."""
    powers = tuple(power for power in choice.powers if power[0] in moving)
    pieces = tuple(piece for piece in choice.pieces if piece[2] in moving)
    return replace(choice, powers=powers, pieces=pieces, offset=choice.offset if powers else 0)


def _comment(group: Group, choice: Choice) -> str:
    guesses = []
    for dim, dimension in enumerate(group.dims):
        form = dimension.forms[choice.forms[dim]]
        if len(form.pieces) > 1:
            guesses.append("order of the parts")
        elif len(form.pieces[:1]) == 1 and len(form.pieces[0].items) > 1 and _has_alias(dimension.forms):
            guesses.append("which of equal sizes")
    if choice.powers or choice.pieces:
        guesses.append("power")
    if group.module in ("Parameter", "Linear?") and len(group.contractions) > 2:
        guesses.append("what is summed over")
    return f"by trial: {', '.join(dict.fromkeys(guesses))}" if guesses else ""


def _has_alias(forms: Iterable[Form]) -> bool:
    return len({frozenset(form.axes) for form in forms}) > 1


def _sparse(groups: Sequence[Group]) -> set[str]:
    """Patterns that not every layer has."""
    layers: dict[str, set[str]] = defaultdict(set)
    own: dict[str, set[str]] = {}
    for group in groups:
        stem, numbers = _layers(group)
        layers[stem] |= numbers
        own[group.pattern] = numbers
    return {
        group.pattern for group in groups if _layers(group)[0] and own[group.pattern] != layers[_layers(group)[0]]
    } | {group.pattern for group in groups if "{last}" not in group.pattern and _has_last(group, groups)}


def _has_last(group: Group, groups: Sequence[Group]) -> bool:
    return any(other.pattern == group.pattern.replace("*", "{last}", 1) for other in groups if other is not group)


def _layers(group: Group) -> tuple[str, set[str]]:
    """The text in front of the first number that stands for a layer, and the layers that the group has."""
    match = re.match(r"([^{}]*?)(?:\*|\{[\d,]+\}|(?<=\.)\d+(?=\.))", group.pattern)
    if match is None:
        return "", set()
    stem = match.group(1)
    return stem, {name[len(stem) :].partition(".")[0] for name in group.names}


def _merged(rules: list[_Rule]) -> list[_Rule]:
    """Rules that differ in one part of the name become one with alternatives."""
    changed = True
    while changed:
        changed = False
        for index, rule in enumerate(rules):
            alike = [other for other in rules[index + 1 :] if _alike(rule, other)]
            for place in range(rule.pattern.count(".") + 1):
                same = [other for other in alike if _differs_only(rule.pattern, other.pattern, place)]
                if same:
                    members = [rule, *same]
                    merged = replace(rule, pattern=_joined([m.pattern for m in members], place))
                    rules = [merged if r is rule else r for r in rules if r not in same]
                    changed = True
                    break
            if changed:
                break
    return rules


def _alike(rule: _Rule, other: _Rule) -> bool:
    return rule.layouts == other.layouts and rule.optional == other.optional


def _differs_only(pattern: str, other: str, place: int) -> bool:
    ours, theirs = _split(pattern), _split(other)
    if len(ours) != len(theirs) or place >= len(ours):
        return False
    if any(a != b for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if i != place):
        return False
    plain = not set("*{}") & set(theirs[place]) and not set("*{}") & set(ours[place].replace("{weight,bias}", ""))
    return plain and not ours[place].isdigit()


def _split(pattern: str) -> list[str]:
    return re.findall(r"(?:\{[^}]*\}|[^.])+", pattern)


def _joined(patterns: Sequence[str], place: int) -> str:
    parts = [_split(pattern) for pattern in patterns]
    texts = [part[place] for part in parts]
    end = _common_end(texts)
    inner = [text[: len(text) - len(end)] if end else text for text in texts]
    first = parts[0]
    first[place] = "{" + ",".join(inner) + "}" + end
    return ".".join(first)


def _common_end(texts: Sequence[str]) -> str:
    """The longest `_something` that all texts end with, where something is left of each."""
    pieces = texts[0].split("_")
    for start in range(1, len(pieces)):
        end = "_" + "_".join(pieces[start:])
        if all(text.endswith(end) and len(text) > len(end) for text in texts):
            return end
    return ""


def mentioned_axes(variants: Iterable[Variant]) -> set[str]:
    """The axes that some tensor has, in its layout or in its name."""
    names: set[str] = set()
    for variant in variants:
        for group, choice in zip(variant.groups, variant.state.choices, strict=True):
            names.update(name for _, name in group.name_axes)
            for dim in range(len(group.dims)):
                names |= choice.form(group, dim).axes
    return names


def _plain(value: object) -> str:
    return json.dumps(value)


def _quoted_if_needed(text: str) -> str:
    return json.dumps(text) if re.search(r"[,:#{}\[\]\"]|^[*&!|>%@`]", text) else text

"""Write a drafted recipe in the language of recipes."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mupscale_cli.architecture.loading import FORMAT_VERSION
from mupscale_cli.infer.axes import Axes
from mupscale_cli.infer.layouts import Choice, Form, Group, layout_text
from mupscale_cli.infer.trials import State
from mupscale_cli.infer.vocabulary import ABOUT, BY_NAME, kind_of, part_of
from mupscale_cli.infer.words import Words


@dataclass(frozen=True)
class Variant:
    """The layouts that hold for a tied or an untied readout.

    Attributes:
        groups: the tensors.
        state: the choice for each group.
    """

    groups: tuple[Group, ...]
    state: State

    @property
    def axes(self) -> set[str]:
        """The axes in the tensors' names and layouts."""
        names = {name for group in self.groups for _, name in group.name_axes}
        for group, choice in zip(self.groups, self.state.choices, strict=True):
            names.update(*(choice.form(group, dim).axes for dim in range(len(group.dims))))
        return names


@dataclass(frozen=True)
class Draft:
    """The content of a drafted recipe.

    Attributes:
        name: the model type, or the user's function.
        match: config keys and their values for the section `match`.
        axes: the axes.
        fixed: axes that cannot be widened, with the reason.
        config: the config of the tiny model.
        defaults: the values that the config class gives to absent keys.
        tied: the layouts if the readout shares the embedding's tensor; None if that was not tried.
        untied: the layouts if it does not; None if that was not tried.
        head: a pattern of the classes that have the readout.
        shares: further names of tensors that the model has under several names, each with the name in the layouts.
        words: what fresh units and new blocks need.
        header: lines that say how the recipe was verified.
    """

    name: str
    match: Mapping[str, tuple[str, ...]]
    axes: Axes
    fixed: dict[str, str]
    config: dict[str, Any]
    defaults: dict[str, Any]
    tied: Variant | None
    untied: Variant | None
    head: str = ""
    shares: Mapping[str, str] = field(default_factory=dict)
    words: Words = field(default_factory=Words)
    header: tuple[str, ...] = ()

    @property
    def variants(self) -> tuple[Variant, ...]:
        return tuple(variant for variant in (self.untied, self.tied) if variant)

    @property
    def movable(self) -> list[str]:
        """The independent axes that can be widened."""
        return [axis.name for axis in self.axes.candidates if axis.name not in self.fixed]

    @property
    def widen(self) -> tuple[str, ...]:
        """The axes that a bare factor widens."""
        free = [name for name in _ordered(self.axes) if name not in self.fixed]
        plain = [name for name in free if not self._part(name)] or free  # other parts than the language model by name
        usual = [name for name in plain if not BY_NAME.fullmatch(kind_of(name))]
        for alias, product in self.axes.aliases.items():
            moving = [name for name in product if name in free and name in usual]
            if alias in usual and not moving:
                # The number of heads is fixed, so the residual stream grows with the size of a head.
                usual += [name for name in product if name in plain][:1]
            if len(moving) > 1:
                usual = [name for name in usual if name not in moving[1:]]
        return tuple(usual)

    def _part(self, axis: str) -> str:
        """Return the part of the config that an axis belongs to; it is empty for the language model."""
        counting = {candidate.name: candidate.key for candidate in self.axes.candidates}
        return part_of(counting.get(axis) or counting[self.axes.aliases[axis][0]])

    def grown_by(self, alias: str) -> str | None:
        """Return the part of an alias that a bare factor multiplies, such as the heads of the residual stream."""
        free = [name for name in self.axes.aliases[alias] if name not in self.fixed]
        return next((name for name in free if name in self.widen), None) if alias in self.widen else None

    def with_fixed(self, reasons: Mapping[str, str]) -> Draft:
        """Fix more axes, and the aliases whose parts are all fixed."""
        fixed = {**self.fixed, **reasons}
        for alias, product in self.axes.aliases.items():
            if all(part in fixed for part in product):
                fixed.setdefault(alias, fixed[product[0]])
        return replace(self, fixed=fixed)


def without_unused_axes(axes: Axes, variants: Collection[Variant]) -> Axes:
    """Drop the axes that no layout mentions. If some parts of an alias are laid out, its other parts cannot move."""
    used = set().union(*(variant.axes for variant in variants))
    used.update(*(product for alias, product in axes.aliases.items() if alias in used and not used & set(product)))
    parts = {alias: tuple(part for part in product if part in used) for alias, product in axes.aliases.items()}
    return replace(
        axes,
        candidates=tuple(axis for axis in axes.candidates if axis.name in used),
        aliases={alias: product for alias, product in parts.items() if product},
    )


def _ordered(axes: Axes) -> list[str]:
    """Order names so that each size depends only on earlier ones, starting with the residual stream."""
    order = ("embed", "kv", "h", "g", "d", "ffn")
    kinds = {name: kind_of(name) for name in axes.names}
    return sorted(axes.names, key=lambda name: order.index(kinds[name]) if kinds[name] in order else len(order))


def recipe_text(draft: Draft) -> str:
    """Return the YAML of a draft, with its sections in the order of the built-in recipes."""
    used = set().union(*(variant.axes for variant in draft.variants))
    names = [name for name in _ordered(draft.axes) if name in used or name not in draft.axes.aliases]
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
        _section("requires", {json.dumps(key): json.dumps(reason) for key, reason in draft.words.requires.items()}),
        _section("config", {key: _quoted(value) for key, value in config.items()}),
        ["tensors:", *_rule_lines(_rules(draft))],
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
    return depth, _section("units", {key: _quoted("[. per layers]") for key in stack.lists})


def _quoted(text: str) -> str:
    """Quote a YAML value that would not be read as this text."""
    return json.dumps(text) if re.search(r"[,:#{}\[\]\"]|^[*&!|>%@`]", text) else text


# Config --------------------------------------------------------------------------------------------


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
            result[key] = " * ".join(name for name in _ordered(draft.axes) if name in used)
        else:
            free = {name: power for name, power in used.items() if name not in draft.fixed}
            if free:
                result[key] = f"{key} | " + " ".join(n if p == 1 else f"{n}^{p}" for n, p in free.items())
    return result


def _defaults(draft: Draft, config: Mapping[str, str], names: Sequence[str]) -> dict[str, Any]:
    """Return the defaults of the keys that the recipe reads; config.json may leave them out."""
    words = draft.words
    more = [*words.eps.values(), *([words.stack.size] if words.stack else ())]
    text = " ".join([*config.values(), *(draft.axes.sizes[name] for name in names), *more])
    keys = dict.fromkeys(re.findall(r"[A-Za-z_][\w.]*", text))
    defaults = {key: draft.defaults[key] for key in keys if draft.defaults.get(key) is not None}
    if draft.tied and draft.untied:
        defaults["tie_word_embeddings"] = bool(draft.defaults.get("tie_word_embeddings", False))
    return {key: value for key, value in defaults.items() if isinstance(value, (int, float, str, bool))}


# Tensors -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule for tensors: pairs of condition and layout; the last condition is empty."""

    pattern: str
    layouts: tuple[tuple[str, str], ...]
    optional: bool
    comment: str

    @property
    def head(self) -> str:
        return f'  "{self.pattern}{"?" if self.optional else ""}": '


def _rule_lines(rules: Sequence[Rule]) -> Iterator[str]:
    """Yield the YAML of rules, with aligned comments."""
    commented = (rule for rule in rules if len(rule.layouts) == 1 and rule.comment)
    width = max((len(rule.head) + len(rule.layouts[0][1]) for rule in commented), default=0)
    for rule in rules:
        comment = f"# {rule.comment}" if rule.comment else ""
        if len(rule.layouts) == 1:
            line = f'{rule.head}"{rule.layouts[0][1]}"'
            yield f"{line.ljust(min(width + 2, 72))}  {comment}".rstrip()
            continue
        yield f"{rule.head.rstrip()}  {comment}".rstrip()
        for condition, layout in rule.layouts:
            yield f'    - {{when: {condition}, dims: "{layout}"}}' if condition else f'    - "{layout}"'


def _rules(draft: Draft) -> list[Rule]:
    layouts: dict[str, dict[str, str]] = defaultdict(dict)
    comments: dict[str, str] = {}
    optional: set[str] = set()
    moving = {name for name in draft.axes.names if name not in draft.fixed}
    for kind, variant in (("", draft.untied), ("tied", draft.tied)):
        if variant is None:
            continue
        optional |= _optional_patterns(variant.groups)
        for group, choice in zip(variant.groups, variant.state.choices, strict=True):
            chosen = draft.words.choice(group, _with_powers_of(choice, moving))
            others = [name for name, kept in draft.shares.items() if kept in group.names]
            if others:
                optional.update((group.pattern, *others))
            for pattern in (group.pattern, *others):
                layouts[pattern][kind] = layout_text(group, chosen, draft.words.word(group))
                comments.setdefault(pattern, _comment(group, chosen))
    both = draft.tied is not None and draft.untied is not None
    rules = []
    for pattern, by_kind in layouts.items():
        if both and len(by_kind) == 1:
            optional.add(pattern)
        if both and len(set(by_kind.values())) > 1:
            choices = [("tied_readout", by_kind["tied"]), ("", by_kind[""])]
        else:
            choices = [("", next(iter(by_kind.values())))]
        rules.append(Rule(pattern, tuple(choices), pattern in optional, comments[pattern]))
    return merged_rules(_without_repeated(rules))


def _with_powers_of(choice: Choice, moving: set[str]) -> Choice:
    """Keep only the powers of axes that can be widened."""
    powers = tuple(power for power in choice.powers if power[0] in moving)
    pieces = tuple(piece for piece in choice.pieces if piece[2] in moving)
    return replace(choice, powers=powers, pieces=pieces, offset=choice.offset if powers else 0)


def _comment(group: Group, choice: Choice) -> str:
    """Name the properties of a layout that were found by trial."""
    guesses = []
    for dim, dimension in enumerate(group.dims):
        form = dimension.forms[choice.forms[dim]]
        if len(form.pieces) > 1:
            guesses.append("order of the parts")
        elif len(form.pieces) == 1 and len(form.pieces[0].items) > 1 and _has_alternatives(dimension.forms):
            guesses.append("axes of equal size")
    if choice.powers or choice.pieces:
        guesses.append("power")
    if group.module in ("Parameter", "Linear?") and len(group.contractions) > 2:
        guesses.append("summed dimensions")
    return f"by trial: {', '.join(dict.fromkeys(guesses))}" if guesses else ""


def _has_alternatives(forms: Iterable[Form]) -> bool:
    return len({frozenset(form.axes) for form in forms}) > 1


def _optional_patterns(groups: Sequence[Group]) -> set[str]:
    """Return the patterns of tensors that only some layers have, and of rules with an exception for the last layer."""
    layers: dict[str, set[str]] = defaultdict(set)
    for group in groups:
        stem, numbers = _layers(group)
        layers[stem] |= numbers
    patterns = {group.pattern for group in groups}
    return {
        group.pattern
        for group in groups
        for stem, numbers in [_layers(group)]
        if (stem and numbers != layers[stem])
        or ("*" in group.pattern and group.pattern.replace("*", "{last}", 1) in patterns)
    }


def _layers(group: Group) -> tuple[str, set[str]]:
    """Return the text before a pattern's first layer number, and the group's layers."""
    match = re.match(r"([^{}]*?)(?:\*|\{[\d,]+\}|(?<=\.)\d+(?=\.))", group.pattern)
    if match is None:
        return "", set()
    stem = match.group(1)
    return stem, {name[len(stem) :].partition(".")[0] for name in group.names}


def _without_repeated(rules: list[Rule]) -> list[Rule]:
    """Drop rules for the last layer that equal the rule for every layer."""
    layouts = {rule.pattern: rule.layouts for rule in rules}

    def is_repeated(rule: Rule) -> bool:
        general = rule.pattern.replace("{last}", "*", 1)
        return general != rule.pattern and layouts.get(general) == rule.layouts

    return [rule for rule in rules if not is_repeated(rule)]


def merged_rules(rules: list[Rule]) -> list[Rule]:
    """Merge rules whose names differ in one part into one rule with alternatives."""
    for index, rule in enumerate(rules):
        similar = [r for r in rules[index + 1 :] if (r.layouts, r.optional) == (rule.layouts, rule.optional)]
        for place in range(len(_parts(rule.pattern))):
            same = [other for other in similar if _differ_only_in(rule.pattern, other.pattern, place)]
            if same:
                merged = replace(rule, pattern=_with_alternatives([r.pattern for r in (rule, *same)], place))
                return merged_rules([merged if r is rule else r for r in rules if r not in same])
    return rules


def _parts(pattern: str) -> list[str]:
    """Split a pattern at its dots, except inside braces."""
    return re.split(r"\.(?![^{]*\})", pattern)


def _differ_only_in(pattern: str, other: str, place: int) -> bool:
    """Return whether two patterns differ only in one part, which is a plain word in both."""
    ours, theirs = _parts(pattern), _parts(other)
    if len(ours) != len(theirs) or any(a != b for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if i != place):
        return False
    special = set("*{}")
    is_plain = not special & {*theirs[place], *"".join(_alternatives(ours[place]))}
    return is_plain and not ours[place].isdigit()


def _with_alternatives(patterns: Sequence[str], place: int) -> str:
    parts = [_parts(pattern) for pattern in patterns]
    texts = [text for part in parts for text in _alternatives(part[place])]
    end = _common_end(texts)
    choices = ",".join(text.removesuffix(end) for text in texts)
    return ".".join([*parts[0][:place], f"{{{choices}}}{end}", *parts[0][place + 1 :]])


def _alternatives(part: str) -> list[str]:
    """Return what a part of a pattern stands for: `weight` and `bias` for `{weight,bias}`."""
    listed = re.fullmatch(r"\{([^{}]*)\}(\w*)", part)
    return [text + listed[2] for text in listed[1].split(",")] if listed else [part]


def _common_end(texts: Sequence[str]) -> str:
    """Return the longest `_suffix` of all texts that leaves something of each."""
    pieces = texts[0].split("_")
    for start in range(1, len(pieces)):
        end = "_" + "_".join(pieces[start:])
        if all(text.endswith(end) and len(text) > len(end) for text in texts):
            return end
    return ""

"""Write the rules for tensors of a drafted recipe."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from mupscale_cli.infer.draft import Draft
from mupscale_cli.infer.layouts import Choice, Form, Group, layout_text


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


def rule_lines(rules: Sequence[Rule]) -> Iterator[str]:
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


def tensor_rules(draft: Draft) -> list[Rule]:
    """Return the rules of a draft; a rule whose layout depends on the tie has one for each."""
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
    found = []
    for pattern, by_kind in layouts.items():
        if both and len(by_kind) == 1:
            optional.add(pattern)
        if both and len(set(by_kind.values())) > 1:
            choices = [("tied_readout", by_kind["tied"]), ("", by_kind[""])]
        else:
            choices = [("", next(iter(by_kind.values())))]
        found.append(Rule(pattern, tuple(choices), pattern in optional, comments[pattern]))
    return merged_rules(_without_repeated(found))


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

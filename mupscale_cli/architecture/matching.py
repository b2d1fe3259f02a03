"""Match the tensors of a checkpoint to the rules of a recipe: each tensor follows exactly one rule."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from types import MappingProxyType
from typing import Any

from mupscale_cli.architecture.patterns import FIRST, LAST, STAR, Pattern, Prefix
from mupscale_cli.architecture.types import Recipe, TensorRule
from mupscale_cli.errors import RecipeError
from mupscale_cli.text import listed

Prefixes = Mapping[str, str]
_MAX_NAMED = 5  # names in a message
_BLOCK = re.compile(r"(?:.*?\.\d+\.)?", re.ASCII)  # the beginning of a name up to its first number


@dataclass(frozen=True, slots=True)
class Match:
    """A tensor's rule, and where its name has the axes and words of the rule's pattern.

    Attributes:
        block: the names of all tensors of the same block, those that agree up to the first number, if the rule has
            several layouts, whose conditions may ask for them.
    """

    rule: TensorRule
    groups: re.Match[str]
    block: tuple[str, ...] = ()


_OTHER_ARCHITECTURE = "this is another architecture: choose its recipe, or write one (`mupscale help language`)"
NO_CONFIG: Mapping[str, Any] = MappingProxyType({})
DRAFT = "`mupscale recipes infer PATH/config.json -o mine.yaml`"


def match_rules(recipe: Recipe, names: Sequence[str], config: Mapping[str, Any] = NO_CONFIG) -> dict[str, Match]:
    """Find the rule of every tensor.

    If several patterns match a name, the one with the fewest `*` wins: `layers.{last}.norm.weight` overrides
    `layers.*.norm.weight`.

    Args:
        recipe: the recipe with the rules.
        names: the names of all tensors of the checkpoint.
        config: config.json of the checkpoint, which tells a variant of the recipe's architecture from another one.

    Returns:
        The match of each name, in the order of `names`.

    Raises:
        RecipeError: a tensor matches no rule or several equally well, or a required rule matches no tensor.
    """
    prefixes, candidates = _best_prefixes(recipe, names)
    _resolve_ends(candidates)
    unknown = [name for name, matches in candidates.items() if not matches]
    if unknown:
        raise RecipeError(
            f"no rule of `{recipe.file}` matches {listed(unknown, _MAX_NAMED)}",
            hint=_unfit(recipe, config)
            if recipe.path is None
            else "add a rule; for a tensor that is not widened, use `keep` or `omit`",
        )
    matched = {name: _most_specific(name, matches) for name, matches in candidates.items()}
    _check_present(recipe, matched, prefixes, config)
    return _in_blocks(matched)


def _unfit(recipe: Recipe, config: Mapping[str, Any]) -> str:
    """Say why a built-in recipe does not fit, and what to do: its model types have variants with other tensors."""
    kind = config.get("model_type")
    if not any(fnmatchcase(str(kind), value) for value in recipe.model_types):
        return _OTHER_ARCHITECTURE
    return (
        f"config.json describes a variant of `{kind}` that this recipe does not cover; {DRAFT} drafts one for it by "
        "experiment, and `--recipe mine.yaml` uses it"
    )


def used_prefixes(recipe: Recipe, names: Sequence[str]) -> Prefixes:
    """Return the prefixes of a recipe with which most of the names match a rule."""
    return _best_prefixes(recipe, names)[0]


def _best_prefixes(recipe: Recipe, names: Sequence[str]) -> tuple[Prefixes, dict[str, list[Match]]]:
    """Choose the prefixes with which most names match, and of those the ones with which rules say most about them.

    A rule such as `{vision}**` matches every name if its prefix is empty, and says nothing about it.
    """
    tried = []
    for prefixes in recipe.prefixes:
        candidates = _candidates(recipe, prefixes, names)
        num_matched = sum(map(bool, candidates.values()))
        num_told = sum(any("**" not in m.rule.pattern.text for m in found) for found in candidates.values())
        tried.append(((num_matched, num_told), prefixes, candidates))
        if num_told == len(names):
            break  # no other prefixes match more
    _, prefixes, candidates = max(tried, key=lambda each: each[0])
    return prefixes, candidates


def _candidates(recipe: Recipe, prefixes: Prefixes, names: Sequence[str]) -> dict[str, list[Match]]:
    """Find all rules that match each name; the last part of a name narrows down the rules to try."""
    by_ending: dict[str | None, list[TensorRule]] = defaultdict(list)
    for rule in (*recipe.tensors, *recipe.implied):
        last = rule.pattern.parts[-1]
        by_ending[last.rpartition(".")[2] if isinstance(last, str) and "." in last else None].append(rule)
    any_ending = by_ending.pop(None, [])

    @cache
    def rules_for(tail: str) -> list[tuple[TensorRule, re.Pattern[str]]]:
        """Return the rules that may match names with the same last two parts, such as `up_proj.weight`."""
        rules = (*by_ending.get(tail.rpartition(".")[2], ()), *any_ending)
        return [(rule, rule.pattern.regex(prefixes)) for rule in rules if rule.pattern.may_match_end(tail)]

    def match(name: str) -> list[Match]:
        return [Match(rule, found) for rule, regex in rules_for(_tail(name)) if (found := regex.fullmatch(name))]

    return {name: match(name) for name in names}


def _tail(name: str) -> str:
    return ".".join(name.rsplit(".", 2)[-2:])


def may_fit(patterns: Sequence[Pattern], names: Iterable[str]) -> bool:
    """Tell whether each name ends like one of the patterns; comparing ends takes a fraction of the time of matching."""
    return all(any(pattern.may_match_end(tail) for pattern in patterns) for tail in dict.fromkeys(map(_tail, names)))


def _resolve_ends(candidates: dict[str, list[Match]]) -> None:
    """Drop matches of `{first}` and `{last}` whose number is not the smallest or the largest."""
    numbers: dict[tuple[str, str, str], set[int]] = defaultdict(set)
    for matches in candidates.values():
        for match in matches:
            for word, key, number in _ends(match):
                numbers[match.rule.pattern.text, word, key].add(number)

    def holds(match: Match) -> bool:
        return all(
            number == (min if word == FIRST.word else max)(numbers[match.rule.pattern.text, word, key])
            for word, key, number in _ends(match)
        )

    for name, matches in candidates.items():
        candidates[name] = [match for match in matches if holds(match)]


def _ends(match: Match) -> Iterable[tuple[str, str, int]]:
    for word in (FIRST.word, LAST.word):
        if word in match.groups.re.groupindex:
            start, end = match.groups.span(word)
            name = match.groups.string
            yield word, f"{name[:start]}#{name[end:]}", int(match.groups[word])


def _most_specific(name: str, matches: list[Match]) -> Match:
    if len(matches) == 1:
        return matches[0]
    fewest = min(match.rule.pattern.num_wildcards for match in matches)
    best = [match for match in matches if match.rule.pattern.num_wildcards == fewest]
    if len(best) > 1:
        first, second = best[:2]
        raise second.rule.text.error(
            f"`{name}` matches this rule and the one on line {first.rule.text.origin.line}, `{first.rule.text.value}`",
            hint="make one of the patterns narrower",
        )
    return best[0]


def _in_blocks(matched: Mapping[str, Match]) -> dict[str, Match]:
    """Add to every match of a rule with several layouts the names of its block."""
    blocks: dict[str, list[str]] = defaultdict(list)
    starts = {name: _BLOCK.match(name)[0] for name in matched}  # type: ignore[index]  # it matches any name
    for name, start in starts.items():
        blocks[start].append(name)
    names = {start: tuple(block) for start, block in blocks.items()}
    return {
        name: replace(match, block=names[starts[name]]) if len(match.rule.choices) > 1 else match
        for name, match in matched.items()
    }


def _check_present(recipe: Recipe, matched: dict[str, Match], prefixes: Prefixes, config: Mapping[str, Any]) -> None:
    """Check that every required rule matches a tensor of each layer that any rule matches.

    A layer is the text that the first `*` of a pattern matches; patterns that start alike share their layers.
    """
    layers: dict[str, set[str]] = defaultdict(set)
    seen: dict[str, set[str]] = defaultdict(set)
    for match in matched.values():
        stem, layer = _layer(match, prefixes)
        layers[stem].add(layer)
        seen[match.rule.pattern.text].add(layer)
    for rule in recipe.tensors:
        if rule.pattern.optional:
            continue
        if rule.pattern.text not in seen:
            raise rule.text.error(
                "no tensor of the checkpoint matches this rule",
                hint=f"the checkpoint is incomplete, or {_unfit(recipe, config)}"
                if recipe.path is None
                else "end it with `?` if the tensor is optional",
            )
        stem = _stem(rule.pattern, prefixes)
        missing = sorted(layers[stem] - seen[rule.pattern.text], key=lambda layer: (len(layer), layer))
        if missing and stem:
            example = stem + missing[0]
            raise rule.text.error(
                f"the checkpoint has `{example}`, but no tensor in it matches this rule",
                hint="the checkpoint may be incomplete"
                + ("" if recipe.path is None else "; if the tensor is optional, end the rule with `?`"),
            )


def _stem(pattern: Pattern, prefixes: Prefixes) -> str:
    """Return the text before a pattern's first wildcard if that is a `*` after a dot, else an empty string."""
    stem = ""
    for part in pattern.parts:
        if isinstance(part, str):
            stem += part
        elif isinstance(part, Prefix):
            stem += prefixes[part.word]
        else:
            return stem if stem.endswith(".") and part is STAR else ""
    return ""


def _layer(match: Match, prefixes: Prefixes) -> tuple[str, str]:
    stem = _stem(match.rule.pattern, prefixes)
    return stem, match.groups.string[len(stem) :].partition(".")[0] if stem else ""

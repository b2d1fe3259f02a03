"""Find the words with which the axes of a draft grow to any size, and its blocks in number; each is proved by trial."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from typing import Any, Union

from mupscale_cli.architecture.loading import read_draft
from mupscale_cli.errors import MupscaleError
from mupscale_cli.infer.architecture import Architecture, random_model
from mupscale_cli.infer.draft import Draft
from mupscale_cli.infer.errors import first_line
from mupscale_cli.infer.layouts import Group
from mupscale_cli.infer.norms import LARGE_EPS, eps_keys, find_norms
from mupscale_cli.infer.proof import ProofModel
from mupscale_cli.infer.search import Note
from mupscale_cli.infer.shapes import scaled_config
from mupscale_cli.infer.solving import Solution
from mupscale_cli.infer.vocabulary import (
    INNER_NORM,
    QUERY,
    ROTATED,
    are_distinct,
    kind_of,
    meaning,
    module_of,
    names_blocks,
)
from mupscale_cli.infer.words import Split, Stack, Words
from mupscale_cli.infer.write import recipe_text

Factor = Union[int, Fraction]
_HALF = Fraction(1, 2)
_MOST_RATIOS = 12  # sets of powers to try


def with_words(draft: Draft, solutions: Sequence[Solution], note: Note) -> tuple[Draft, dict[str, float]]:
    """Add the words that make axes grow to any size, and the stack of blocks, as far as trials prove them.

    Args:
        draft: a draft that is exact for whole factors.
        solutions: what it was written from, with tied and untied readouts.
        note: receives progress messages.

    Returns:
        The draft, and the largest relative difference of each proving growth; the same draft if there is no proof.
    """
    finder = _Finder(draft, solutions, note)
    try:
        return finder.find()
    except MupscaleError as error:
        note(f"no axis grows to any size: {error.message}")
        return draft, {}


@dataclass
class _Finder:
    """Looks for words; every question is answered by growing random tiny models."""

    draft: Draft
    solutions: Sequence[Solution]
    note: Note
    fresh_only: set[str] = field(default_factory=set)  # axes that grow by fresh units alone

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        return self.solutions[0].runner.groups

    @cached_property
    def models(self) -> list[ProofModel]:
        return [ProofModel.of(_with_large_eps(each.architecture), tied=each.tied) for each in self.solutions]

    def grow(self, draft: Draft, amounts: Mapping[str, Factor]) -> float | str:
        """Return the largest relative difference over all models, or a problem."""
        recipe = read_draft(recipe_text(draft), draft.name)
        worst = 0.0
        for model in self.models:
            error = model.widen(recipe, amounts)
            if isinstance(error, str):
                return error
            worst = max(worst, error)
        return worst

    def find(self) -> tuple[Draft, dict[str, float]]:
        draft = self._with_requirement(self._with_rotary(self._with_norms()))
        draft, ways, errors = self._each(draft)
        draft, deeper = self._with_stack(draft)
        if deeper is not None:
            errors["layers x2"] = deeper
            ways |= self._deeper(draft)
        twice = self.grow(draft, draft.axes.with_aliases(dict.fromkeys(self._whole(draft), 2)))
        together = self.grow(draft, draft.axes.with_aliases(ways)) if len(errors) > 1 else 0.0
        for problem in (twice, together):
            if isinstance(problem, str):
                self.note(f"axes grow by whole factors only, since they do not grow together: {problem}")
                return self.draft, {}
        return draft, errors

    def _whole(self, draft: Draft) -> list[str]:
        """The axes that had been proved for whole factors."""
        return [name for name in draft.movable if name in self.draft.movable]

    # Norms and eps ------------------------------------------------------------------------------

    def _with_norms(self) -> Draft:
        """Say what each norm normalizes, and which eps belongs to an axis: its own, or that of the residual streams."""
        architecture = self.models[0].architecture
        found = find_norms(architecture, self.groups, random_model(architecture))
        by_axis: dict[str, set[str | None]] = {}
        streams: set[str] = set()
        for group in self.groups:
            norm, axis = found.words.get(group.pattern), _axis(group) if group.pattern in found.words else None
            if norm is not None and axis is not None:
                by_axis.setdefault(axis, set()).add(found.eps.get(group.pattern))
                streams |= {axis} if norm.of is None else set()
        known = {axis: next(iter(texts)) for axis, texts in by_axis.items() if len(texts) == 1}
        shared = {known.get(axis) for axis in streams}
        eps = {axis: text for axis, text in known.items() if text and (axis in streams or {text} != shared)}
        return replace(self.draft, words=Words(eps=eps, norms=found.words))

    # Heads --------------------------------------------------------------------------------------

    def _with_rotary(self, draft: Draft) -> Draft:
        """Say which axes attention multiplies queries and keys over, and which tensors make the queries."""
        for axis in draft.axes.candidates:
            if kind_of(axis.name) in ROTATED:
                draft = self._with_head(draft, axis.name)
        return draft

    def _with_head(self, draft: Draft, axis: str) -> Draft:
        if axis not in draft.fixed:  # its units are copied
            return _with(draft, rotary={axis: "none"}, splits=dict(self._copied(axis)))
        is_rotary = self.solutions[0].runner.is_rotary
        for turned, power in itertools.product(("halves", "pairs") if is_rotary else ("none",), (_HALF, Fraction(0))):
            fresh = self._growing_by_fresh(draft, axis, turned, power)
            if isinstance(self.grow(fresh, {axis: 2}), float):
                self.fresh_only.add(axis)
                return fresh
        return _with(draft, rotary={axis: "halves" if is_rotary else "none"})  # for more heads of the same size

    def _copied(self, axis: str) -> Iterator[tuple[tuple[str, str], Split]]:
        """Yield the powers of queries and keys that copies inside a head need: the queries take those of the keys."""
        attentions: dict[tuple[str, str], dict[str, Fraction]] = {}
        for pattern, power in self._powers(axis):
            module, _, leaf = pattern.rpartition(".")
            attentions.setdefault((module.rpartition(".")[0], leaf), {})[pattern] = power
        for powers in attentions.values():
            made = [pattern for pattern in powers if self._makes_queries(pattern)] or list(powers)
            for pattern in powers:
                ratio = sum(powers.values(), Fraction(1))
                yield (pattern, axis), Split(Fraction(-1), ratio) if pattern in made else Split(Fraction(0), None)

    def _growing_by_fresh(self, draft: Draft, axis: str, turned: str, power: Fraction) -> Draft:
        """Return the draft whose heads grow by fresh units, since copies inside a head would turn at other speeds."""
        normed = [g.pattern for g in self.groups if _is_query_norm(g, axis) and g.pattern in draft.words.norms]
        split = Split(Fraction(0), power)
        made = [g.pattern for g in self.groups if axis in g.axes and self._makes_queries(g.pattern)]
        splits = {(pattern, axis): Split(Fraction(0), None) if normed else split for pattern in made}
        splits |= {(pattern, axis): split for pattern in normed or [each for each, _ in self._powers(axis)]}
        free = {name: why for name, why in draft.fixed.items() if name != axis}
        return replace(_with(draft, rotary={axis: turned}, splits=splits), fixed=free)

    def _powers(self, axis: str) -> Iterator[tuple[str, Fraction]]:
        """Yield the patterns of the tensors, or of their first pieces, that are scaled by a power of an axis."""
        for group, choice in zip(self.groups, self.solutions[0].result.state.choices, strict=True):
            powers = [
                *(each for each in choice.powers if each[0] == axis),
                *(p[2:] for p in choice.pieces if p[2] == axis),
            ]
            if powers:
                yield group.pattern, powers[0][1]

    def _makes_queries(self, pattern: str) -> bool:
        return bool(QUERY.fullmatch(module_of(pattern)))

    # Single axes --------------------------------------------------------------------------------

    def _each(self, draft: Draft) -> tuple[Draft, dict[str, Factor], dict[str, float]]:
        """Return the draft with the powers that single axes need, how each axis grows, and the error of that."""
        ways: dict[str, Factor] = {}
        errors: dict[str, float] = {}
        for axis in draft.movable:
            size = draft.axes.independent_sizes[axis]
            amount = Fraction(2) if axis in self.fresh_only else Fraction(size + (size + 1) // 2, size)
            factors = draft.axes.with_aliases({axis: amount})
            grown, error = draft, self.grow(draft, factors)
            if isinstance(error, str):
                grown, error = self._with_ratios(draft, axis, factors, error)
            if isinstance(error, str):
                self.note(f"axis {axis}: not proved for other than whole factors: {error}")
                draft = _by_whole_factors(draft, axis)
                continue
            draft, ways[axis] = grown, amount
            errors[f"{axis} x{float(amount):.3g}"] = error
        return draft, ways, errors

    def _with_ratios(
        self, draft: Draft, axis: str, factors: Mapping[str, Factor], problem: str
    ) -> tuple[Draft, float | str]:
        """Split fractional powers, which come from constants that the model computes from a size."""
        names = {axis, *(alias for alias in draft.axes.aliases if alias in factors)}
        powers = {
            (group.pattern, name): power
            for solution in self.solutions
            for group, choice in zip(solution.runner.groups, solution.result.state.choices, strict=True)
            for name, power in choice.powers
            if name in names and power.denominator != 1 and (group.pattern, name) not in draft.words.splits
        }
        options = itertools.product(*([p, p + 1, p - 1] for p in powers.values()))
        for ratios in itertools.islice(options, _MOST_RATIOS if powers else 0):
            chosen = zip(powers.items(), ratios, strict=True)
            grown = _with(draft, splits={key: Split(power - ratio, ratio, power) for (key, power), ratio in chosen})
            error = self.grow(grown, factors)
            if isinstance(error, float):
                return grown, error
        return draft, problem

    def _with_requirement(self, draft: Draft) -> Draft:
        """Say so if the class refuses widths that are no multiple of the number of heads."""
        architecture, keys = self.models[0].architecture, draft.axes
        numbers = [key for key, value in architecture.config.items() if type(value) is int and "." not in key]
        heads = next((key for key in numbers if meaning(key).counts == "h"), None)
        for axis in keys.candidates:
            if heads is None or kind_of(axis.name) != "embed" or "." in axis.key:
                continue
            number = architecture.config[heads]
            odd, even = (scaled_config(architecture.config, [axis], {axis.name: 1}) for _ in range(2))
            odd[axis.key] += number // 2
            even[axis.key] += number
            if _can_be_built(architecture, even) and not _can_be_built(architecture, odd):
                condition = f"{axis.key} // {heads} * {heads} == {axis.key}"
                reason = f"its class refuses a {axis.key} that is no multiple of {heads}"
                return _with(draft, requires={condition: reason})
        return draft

    # Blocks -------------------------------------------------------------------------------------

    def _with_stack(self, draft: Draft) -> tuple[Draft, float | None]:
        """Add the stack of blocks if one more block can be the identity."""
        stack = _find_stack(self.models[0].architecture)
        if stack is None:
            return draft, None
        deeper = replace(draft, words=replace(draft.words, stack=stack))
        error = self.grow(deeper, self._deeper(deeper))
        if isinstance(error, str):
            self.note(f"blocks: no block that is the identity was found: {error}")
            return draft, None
        return deeper, error

    def _deeper(self, draft: Draft) -> dict[str, Factor]:
        stack = draft.words.stack
        return {} if stack is None else {"layers": 2}  # new blocks between the old ones, whose numbers move


def _find_stack(architecture: Architecture) -> Stack | None:
    """Find the only config key whose growth by one adds a block, and the lists that grow with it."""
    config = architecture.config
    before = _blocks(architecture.shapes(config))
    for names, number in before.items():
        keys = [key for key, value in config.items() if type(value) is int and value == number]
        numbers = tuple(key for key, value in config.items() if names_blocks(key, value))
        alike = [key for key, value in config.items() if isinstance(value, list) and len(value) == number]
        repeating = tuple(key for key in alike if not are_distinct(config[key]))
        # A list of distinct numbers has an entry for each block only if it must have them.
        for key, lists in itertools.product(keys, dict.fromkeys((repeating, tuple(alike)))):
            longer = {**config, key: number + 1, **{each: [*config[each], config[each][-1]] for each in lists}}
            if _blocks_of(architecture, longer) == {**before, names: number + 1}:
                return Stack(key, names, lists, tuple(each for each in numbers if each not in lists))
    return None


def _blocks_of(architecture: Architecture, config: Mapping[str, object]) -> dict[str, int]:
    """Return the number of blocks of each stack; nothing if the config is impossible."""
    try:
        return _blocks(architecture.shapes(config))
    except Exception:  # noqa: BLE001 (architectures raise anything)
        return {}


def _blocks(names: Iterable[str]) -> dict[str, int]:
    """Return the number of blocks of each outermost numbering of tensors' names: `model.layers.*`."""
    numbers: dict[str, set[int]] = {}
    for name in names:
        if match := re.match(r"((?:[^.]*[^.\d][^.]*\.)+)(\d+)\.", name):
            numbers.setdefault(f"{match[1]}*", set()).add(int(match[2]))
    return {stem: len(found) for stem, found in numbers.items() if found == set(range(len(found)))}


def _by_whole_factors(draft: Draft, axis: str) -> Draft:
    """Refuse fresh units of an axis that did not keep the function, before anything is written."""
    reason = f"the axis {axis} grows by whole factors only: small models with fresh units computed something else"
    return _with(draft, requires={f"fresh.{axis} == 0": reason})


def _with(draft: Draft, **more: Mapping[Any, Any]) -> Draft:
    """Return a draft with more of some kinds of words."""
    words: dict[str, Any] = {name: {**getattr(draft.words, name), **entries} for name, entries in more.items()}
    return replace(draft, words=replace(draft.words, **words))


def _axis(group: Group) -> str | None:
    """Return the only axis, or alias, of a gain or bias."""
    names = group.dims[0].forms[0].axes
    return next(iter(names)) if len(names) == 1 else None


def _is_query_norm(group: Group, axis: str) -> bool:
    module = group.owner.rpartition(".")[2]
    return axis in group.axes and len(group.dims) == 1 and bool(INNER_NORM.fullmatch(module)) and module[0] == "q"


def _with_large_eps(architecture: Architecture) -> Architecture:
    large = dict.fromkeys(eps_keys(architecture), LARGE_EPS)
    return replace(architecture, config={**architecture.config, **large})  # type: ignore[type-var]


def _can_be_built(architecture: Architecture, config: Mapping[str, object]) -> bool:
    try:
        architecture.build(config)
    except Exception as error:  # noqa: BLE001 (architectures raise anything)
        return not first_line(error)
    return True

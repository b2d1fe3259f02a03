"""Find the words with which the axes of a draft grow to any size, and its blocks in number; each is proved by trial."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property

from mupscale_cli.architecture.loading import read_draft
from mupscale_cli.errors import MupscaleError
from mupscale_cli.infer.architecture import Architecture, random_model
from mupscale_cli.infer.errors import first_line
from mupscale_cli.infer.layouts import Group
from mupscale_cli.infer.norms import LARGE_EPS, eps_keys, eps_of, find_norms
from mupscale_cli.infer.proof import ProofModel
from mupscale_cli.infer.search import Note
from mupscale_cli.infer.shapes import scaled_config
from mupscale_cli.infer.solving import Solution
from mupscale_cli.infer.vocabulary import INNER_NORM, QUERY, ROTATED, kind_of, meaning, module_of
from mupscale_cli.infer.words import Norm, Stack, Words
from mupscale_cli.infer.write import Draft, recipe_text
from mupscale_cli.plan.request import Amount, Size

_HALF = Fraction(1, 2)
_MORE = Fraction(3, 2)  # a factor that is not whole
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

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        return self.solutions[0].runner.groups

    @cached_property
    def models(self) -> list[ProofModel]:
        return [ProofModel.of(_with_large_eps(each.architecture), tied=each.tied) for each in self.solutions]

    def grow(self, draft: Draft, amounts: Mapping[str, Amount]) -> float | str:
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
            errors["layers +1"] = deeper
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
        architecture = self.models[0].architecture
        model = random_model(architecture)
        norms = find_norms(architecture, self.groups, model)
        fixed_by = eps_of(architecture, model, self.groups, norms)
        eps: dict[str, str] = {}
        for axis in self._streams(norms):
            found = {fixed_by.get(g.pattern) for g in self.groups if g.pattern in norms and _axis(g) == axis}
            if len(found) == 1 and (text := found.pop()) is not None:
                eps[axis] = text
        return replace(self.draft, words=Words(eps=eps, norms=norms))

    def _streams(self, norms: Mapping[str, Norm]) -> list[str]:
        """The axes that norms normalize as they are."""
        streams = (_axis(g) for g in self.groups if g.pattern in norms and norms[g.pattern].of is None)
        return [axis for axis in dict.fromkeys(streams) if axis is not None]

    # Heads --------------------------------------------------------------------------------------

    def _with_rotary(self, draft: Draft) -> Draft:
        """Say which axes attention multiplies queries and keys over, and which tensors make the queries."""
        for axis in draft.axes.candidates:
            if kind_of(axis.name) in ROTATED:
                draft = self._with_head(draft, axis.name)
        return draft

    def _with_head(self, draft: Draft, axis: str) -> Draft:
        queries = list(self._queries(axis))
        if axis not in draft.fixed:
            ratios = {(pattern, axis): power + 1 for pattern, power in queries if power is not None}
            words = draft.words
            return replace(
                draft,
                words=replace(words, rotary={**words.rotary, axis: "none"}, ratios={**words.ratios, **ratios}),
            )
        is_rotary = self.solutions[0].runner.is_rotary
        for turned, power in itertools.product(("halves", "pairs") if is_rotary else ("none",), (_HALF, Fraction(0))):
            fresh = self._growing_by_fresh(draft, axis, turned, power)
            if isinstance(self.grow(fresh, {axis: 2}), float):
                return fresh
        rotary = {**draft.words.rotary, axis: "halves" if is_rotary else "none"}
        return replace(draft, words=replace(draft.words, rotary=rotary))  # for more heads of the same size

    def _growing_by_fresh(self, draft: Draft, axis: str, turned: str, power: Fraction) -> Draft:
        """Return the draft whose heads grow by fresh units, since copies inside a head would turn at other speeds."""
        words = draft.words
        normed = [g.pattern for g in self.groups if _is_query_norm(g, axis) and words.norms.get(g.pattern)]
        ratios: dict[tuple[str, str], Fraction | None] = {
            (pattern, axis): None if normed else power for pattern, _ in self._queries(axis)
        }
        ratios |= {(pattern, axis): power for pattern in normed}
        words = replace(
            words,
            rotary={**words.rotary, axis: turned},
            ratios={**words.ratios, **ratios},
            fresh_only=words.fresh_only | {axis},
        )
        return replace(draft, words=words, fixed={name: why for name, why in draft.fixed.items() if name != axis})

    def _queries(self, axis: str) -> Iterator[tuple[str, Fraction | None]]:
        """Yield the patterns of the tensors that make queries, each with the power of an axis that it has."""
        for group, choice in zip(self.groups, self.solutions[0].result.state.choices, strict=True):
            power = dict(choice.powers).get(axis)
            power = power if power is not None else next((each[3] for each in choice.pieces if each[2] == axis), None)
            if power is not None or (axis in group.axes and QUERY.fullmatch(module_of(group.names[0]))):
                yield group.pattern, power

    # Single axes --------------------------------------------------------------------------------

    def _each(self, draft: Draft) -> tuple[Draft, dict[str, Amount], dict[str, float]]:
        """Return the draft with the powers that single axes need, how each axis grows, and the error of that."""
        ways: dict[str, Amount] = {}
        errors: dict[str, float] = {}
        for axis in draft.movable:
            amount: Amount = 2 if axis in draft.words.fresh_only else _MORE
            factors = draft.axes.with_aliases({axis: amount})
            grown, error = draft, self.grow(draft, factors)
            if isinstance(error, str):
                grown, error = self._with_ratios(draft, axis, factors, error)
            if isinstance(error, str):
                self.note(f"axis {axis}: not proved for other than whole factors: {error}")
                continue
            draft, ways[axis] = grown, amount
            errors[f"{axis} x{float(amount):g}"] = error
        return draft, ways, errors

    def _with_ratios(
        self, draft: Draft, axis: str, factors: Mapping[str, Amount], problem: str
    ) -> tuple[Draft, float | str]:
        """Split fractional powers, which come from constants that the model computes from a size."""
        names = {axis, *(alias for alias in draft.axes.aliases if alias in factors)}
        powers = {
            (group.pattern, name): power
            for solution in self.solutions
            for group, choice in zip(solution.runner.groups, solution.result.state.choices, strict=True)
            for name, power in choice.powers
            if name in names and power.denominator != 1 and (group.pattern, name) not in draft.words.ratios
        }
        options = itertools.product(*([power, power + 1, power - 1] for power in powers.values()))
        for chosen in itertools.islice(options, _MOST_RATIOS if powers else 0):
            ratios = {**draft.words.ratios, **dict(zip(powers, chosen, strict=True))}
            grown = replace(draft, words=replace(draft.words, ratios=ratios))
            error = self.grow(grown, factors)
            if isinstance(error, float):
                return grown, error
        return draft, problem

    def _with_requirement(self, draft: Draft) -> Draft:
        """Say so if the class refuses widths that are no multiple of the number of heads."""
        architecture, keys = self.models[0].architecture, draft.axes
        heads = next((key for key in architecture.config if meaning(key).counts == "h" and "." not in key), None)
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
                return replace(draft, words=replace(draft.words, requires={condition: reason}))
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

    def _deeper(self, draft: Draft) -> dict[str, Amount]:
        stack = draft.words.stack
        return {} if stack is None else {"layers": Size(self.models[0].architecture.config[stack.size] + 1)}


def _find_stack(architecture: Architecture) -> Stack | None:
    """Find the only config key whose growth by one adds a block, and the lists that grow with it."""
    config = architecture.config
    before = _blocks(architecture.shapes(config))
    for names, number in before.items():
        keys = [key for key, value in config.items() if type(value) is int and value == number]
        lists = tuple(key for key, value in config.items() if isinstance(value, list) and len(value) == number)
        for key in keys:
            longer = {**config, key: number + 1, **{each: [*config[each], config[each][-1]] for each in lists}}
            try:
                after = _blocks(architecture.shapes(longer))
            except Exception:  # noqa: BLE001 (architectures raise anything)
                continue
            if after == {**before, names: number + 1}:
                return Stack(key, names, lists)
    return None


def _blocks(names: Iterable[str]) -> dict[str, int]:
    """Return the number of blocks of each outermost numbering of tensors' names: `model.layers.*`."""
    numbers: dict[str, set[int]] = {}
    for name in names:
        if match := re.match(r"((?:[^.]*[^.\d][^.]*\.)+)(\d+)\.", name):
            numbers.setdefault(f"{match[1]}*", set()).add(int(match[2]))
    return {stem: len(found) for stem, found in numbers.items() if found == set(range(len(found)))}


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

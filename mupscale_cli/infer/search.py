"""Which choices hold: one axis at a time, and of what is wrong the first module in the order of execution."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction

from torch import nn

from mupscale_cli.infer.candidates import Choice, Group
from mupscale_cli.infer.shapes import Idea
from mupscale_cli.infer.trials import Laboratory, Outcome, State
from mupscale_cli.infer.vocabulary import EXPERTS_PER_TOKEN, FUSED, HEAD_SIZES, QUERY, module_of

HALF, ONE = Fraction(1, 2), Fraction(1)
_EXPONENTS = (-HALF, -ONE, HALF, ONE)


@dataclass(frozen=True, slots=True)
class Budget:
    """How long to search for one axis."""

    trials: int = 160
    seconds: float = 10.0
    total: float = 30.0  # for all axes; after it each gets one trial


DEFAULT_BUDGET = Budget()


@dataclass
class Found:
    """What the search came to.

    Attributes:
        state: the choices.
        solved: axes that hold when widened alone.
        unsolved: the others, with the best that was reached.
    """

    state: State
    solved: tuple[str, ...] = ()
    unsolved: dict[str, Outcome] = field(default_factory=dict)


Move = Callable[[State], State]
Note = Callable[[str], None]


def is_tied(model: nn.Module) -> bool:
    """Whether an embedding and a linear layer share their weight."""
    embeddings = {m.weight.data_ptr() for m in model.modules() if isinstance(m, nn.Embedding)}
    return any(m.weight.data_ptr() in embeddings for m in model.modules() if isinstance(m, nn.Linear))


def split_last(groups: tuple[Group, ...], last_owner: str | None) -> tuple[Group, ...]:
    """Set apart what belongs to the last norm, where it is one of several alike."""
    result: list[Group] = []
    for group in groups:
        chosen = tuple(name for name in group.names if name.rpartition(".")[0] == last_owner)
        if not chosen or len(chosen) == len(group.names) or "*" not in group.pattern:
            result.append(group)
            continue
        rest = tuple(name for name in group.names if name not in chosen)
        result.append(replace(group, names=rest, owner=rest[0].rpartition(".")[0]))
        pattern = group.pattern.replace("*", "{last}", 1)
        result.append(replace(group, pattern=pattern, names=chosen, owner=str(last_owner)))
    return tuple(result)


def last_norm(groups: Iterable[Group], order: list[str]) -> str | None:
    """The owner of the gain over the residual stream that is used last."""
    owners = {
        name.rpartition(".")[0]
        for group in groups
        if len(group.dims) == 1 and "embed" in group.axes and group.module in ("Norm", "Linear?", "Parameter")
        for name in group.names
    }
    return next((name for name in reversed(order) if name in owners), None)


def initial_state(
    groups: tuple[Group, ...], tied: bool, last_owner: str | None, axes: Iterable[Idea], config: dict[str, object]
) -> State:
    """The likely choice everywhere."""
    choices = []
    for group in groups:
        choice = Choice((0,) * len(group.dims))
        if tied and group.owner == last_owner and "embed" in group.axes:
            choice = choice.with_power("embed", -ONE)
        choices.append(_scaled_query(group, choice))
    keys = [
        (idea.name, key, 1)
        for idea in axes
        if idea.name == "experts"
        for key, value in config.items()
        if EXPERTS_PER_TOKEN.fullmatch(key) and type(value) is int and key not in dict(idea.keys)
    ]
    return State(tuple(choices), tuple(keys))


def _scaled_query(group: Group, choice: Choice) -> Choice:
    """Queries take the square root by which attention's 1/sqrt(d) falls short of 1/k."""
    last = module_of(group.names[0])
    if "d" not in group.axes:
        return choice
    if QUERY.fullmatch(last):
        return choice.with_power("d", -HALF)
    if FUSED.fullmatch(last):
        for dim, dimension in enumerate(group.dims):
            pieces = dimension.forms[0].pieces
            if len(pieces) >= 3 and "d" in dimension.axes:
                choice = choice.with_piece(dim, 0, "d", -HALF)
    return choice


class Search:
    """Looks for choices under which every axis can be widened."""

    def __init__(self, laboratory: Laboratory, tied: bool, last_owner: str | None, budget: Budget, note: Note) -> None:
        self.laboratory = laboratory
        self.groups = laboratory.groups
        self.tied = tied
        self.last_owner = last_owner
        self.budget = budget
        self.note = note
        self.failed: dict[str, State] = {}  # with what an axis did not hold
        self.deadline = float("inf")
        self.only: tuple[str, ...] | None = None  # axes to look at, all if None

    def run(self, state: State) -> Found:
        """Solve the axes one after the other; those that failed once more at the end."""
        found = Found(state)
        ideas = sorted(self.laboratory.axes.ideas, key=_difficulty)
        ideas = [idea for idea in ideas if self.only is None or idea.name in self.only]
        self.deadline = time.monotonic() + self.budget.total
        for attempt in range(2):
            for idea in ideas:
                if idea.name not in found.solved and self.failed.get(idea.name) != found.state:
                    self._solve(found, idea)
            if attempt == 0 and not found.unsolved:
                break
        self._join(found)
        return found

    def _solve(self, found: Found, idea: Idea) -> None:
        started = self.laboratory.num_trials
        state, outcome = self._improve(found.state, idea, found.solved)
        trials = self.laboratory.num_trials - started
        if outcome.agrees:
            found.state = state
            found.solved = (*found.solved, idea.name)
            found.unsolved.pop(idea.name, None)
            self.note(f"axis {idea.name}: error {outcome.error:.1e} after {trials} trials")
        else:
            found.unsolved[idea.name] = outcome
            self.failed[idea.name] = found.state
            where = outcome.problem or f"first difference in {outcome.first or 'the output'}"
            self.note(f"axis {idea.name}: does not hold ({where}; error {outcome.error:.1e}, {trials} trials)")

    def _join(self, found: Found) -> None:
        """Widen the solved axes together; one that holds only alone is searched again, else it stays."""
        if len(found.solved) < 2 or self.laboratory.evaluate(found.state, dict.fromkeys(found.solved, 2)).agrees:
            return
        ideas = {idea.name: idea for idea in self.laboratory.axes.ideas}
        together: list[str] = []
        for name in found.solved:
            factors = dict.fromkeys((*together, name), 2)
            state, outcome = self._improve(found.state, ideas[name], found.solved, factors)
            if outcome.agrees and self._agree(state, together):
                found.state = state
                together.append(name)
            else:
                found.unsolved[name] = replace(outcome, problem=f"it holds alone, but not together with {together}")
                self.note(f"axis {name}: holds alone, but not together with {', '.join(together)}")
        found.solved = tuple(together)

    def _agree(self, state: State, names: list[str]) -> bool:
        return not names or self.laboratory.evaluate(state, dict.fromkeys(names, 2)).agrees

    def _improve(
        self, state: State, idea: Idea, solved: tuple[str, ...], together: dict[str, int] | None = None
    ) -> tuple[State, Outcome]:
        factors = together or {idea.name: 2}
        evaluate = self.laboratory.evaluate
        best = evaluate(state, factors)
        trials = self.budget.trials // 4 if idea.name in HEAD_SIZES else self.budget.trials
        end, last = min(time.monotonic() + self.budget.seconds, self.deadline), self.laboratory.num_trials + trials
        seen = {state}
        while not best.agrees:
            better: tuple[State, Outcome] | None = None
            for candidate in self._candidates(state, idea, best):
                if candidate in seen:
                    continue
                if time.monotonic() > end or self.laboratory.num_trials > last:
                    return state, best
                seen.add(candidate)
                outcome = evaluate(candidate, factors)
                if outcome.agrees and self._holds(candidate, solved):
                    return candidate, outcome
                reference = better[1] if better else best
                if outcome.progress > reference.progress and self._holds(candidate, solved):
                    better = candidate, outcome
                    if outcome.progress > best.progress + 2:
                        break
            if better is None:
                return state, best
            state, best = better
        return state, best

    def _holds(self, state: State, solved: tuple[str, ...]) -> bool:
        return all(self.laboratory.evaluate(state, {name: 2}).agrees for name in solved)

    def _candidates(self, state: State, idea: Idea, outcome: Outcome) -> Iterator[State]:
        """States one change away, then two; those at the first difference first."""
        if outcome.problem:
            yield from self._with_keys(state, idea)
        near = self._near(outcome)
        moves = [*self._moves(state, idea, near)]
        for move in moves:
            yield move(state)
        rest = [index for index in range(len(self.groups)) if index not in near]
        far = [*self._moves(state, idea, rest)]
        likely = moves[:16]
        for position, first in enumerate(likely):
            for second in likely[position + 1 :]:
                yield second(first(state))
        for move in far:
            yield move(state)
        if not outcome.problem:
            yield from self._with_keys(state, idea)
        for position, first in enumerate(moves[:40]):
            for second in moves[position + 1 : 40]:
                yield second(first(state))

    def _near(self, outcome: Outcome) -> list[int]:
        """The groups that belong to the first module that differs; for the output, what no good module holds."""
        if outcome.first:
            inside = [
                index
                for index, group in enumerate(self.groups)
                if any(name.startswith(f"{outcome.first}.") for name in group.names)
            ]
            if inside:
                return inside
        layers = [name for name in self.laboratory.narrow.outputs if re.search(r"\.\d+$", name)]
        return [
            index
            for index, group in enumerate(self.groups)
            if group.owner == self.last_owner or not any(group.names[0].startswith(f"{name}.") for name in layers)
        ]

    def _moves(self, state: State, idea: Idea, indices: list[int]) -> Iterator[Move]:
        names = [idea.name, *(a for a, product in self.laboratory.axes.aliases.items() if idea.name in product)]
        relevant = [index for index in indices if self.groups[index].axes & set(names)]
        yield from self._power_moves(relevant, names, likely=True)
        yield from self._form_moves(state, relevant, idea.name, limit=6)
        yield from self._contraction_moves(state, relevant)
        yield from self._piece_moves(state, relevant, idea.name)
        yield from self._power_moves(relevant, names, likely=False)
        yield from self._form_moves(state, relevant, idea.name, limit=None)

    def _with_keys(self, state: State, idea: Idea) -> Iterator[State]:
        config = self.laboratory.architecture.config
        mine = {key for axis, key, _ in state.keys if axis == idea.name}
        if mine:
            yield replace(state, keys=tuple(entry for entry in state.keys if entry[0] != idea.name))
        for power in (1, -1):
            for key, value in config.items():
                number = isinstance(value, (int, float)) and not isinstance(value, bool) and value
                if number and key not in dict(idea.keys) and key not in mine and _may_move(key, value):
                    yield replace(state, keys=(*state.keys, (idea.name, key, power)))

    def _siblings(self, index: int) -> list[int]:
        """A weight and the bias beside it, which are scaled together."""
        group = self.groups[index]
        return [other for other, candidate in enumerate(self.groups) if candidate.owner == group.owner and group.owner]

    def _power_moves(self, indices: list[int], names: list[str], *, likely: bool) -> Iterator[Move]:
        embed = [name for name in names if name == "embed"]
        norms = [i for i in indices if self.groups[i].owner == self.last_owner]
        embeddings = [i for i in indices if self.groups[i].module == "Embedding"]
        if likely:
            for axis in embed:
                for index in norms[:1]:
                    together = self._siblings(index)
                    for exponent, offset in ((-HALF, 0), (-HALF, 1), (-ONE, 1), (-ONE, 0), (Fraction(0), 0), (ONE, 0)):
                        yield _power(together, axis, exponent, offset)
                    for offset in (0, 1):
                        scaled = _power(embeddings, axis, -HALF, 0)
                        yield _both(scaled, _power(together, axis, -HALF, offset))
                if embeddings:
                    yield _power(embeddings, axis, -HALF, 0)
                    for index in embeddings:
                        yield _power([index], axis, -HALF, 0)
            return
        for index in indices:
            group = self.groups[index]
            for axis in names:
                if axis not in group.axes:
                    continue
                together = self._siblings(index) if group.module in ("Linear", "Conv1D", "Bias", "Norm") else [index]
                for exponent in (*_EXPONENTS, Fraction(0)):
                    yield _power([i for i in together if axis in self.groups[i].axes], axis, exponent, 0)

    def _form_moves(self, state: State, indices: list[int], axis: str, limit: int | None) -> Iterator[Move]:
        for index in indices:
            group = self.groups[index]
            for dim, dimension in enumerate(group.dims):
                if axis not in dimension.axes:
                    continue
                forms = range(len(dimension.forms))
                for form in forms[:limit] if limit else forms[6:]:
                    if form != state.choices[index].forms[dim]:
                        yield self._form(index, dim, form)

    def _places(self, index: int, dim: int) -> list[tuple[int, int]]:
        """A dimension, and that of the bias beside a weight."""
        polynomial = self.groups[index].dims[dim].polynomial
        siblings = (other for other in self._siblings(index) if other != index and len(self.groups[other].dims) == 1)
        return [(index, dim), *((o, 0) for o in siblings if self.groups[o].dims[0].polynomial == polynomial)]

    def _form(self, index: int, dim: int, form: int) -> Move:
        """Another form for a dimension, and for the bias beside a weight as well."""
        places = self._places(index, dim)
        wanted = self.groups[index].dims[dim].forms[form]

        def move(state: State) -> State:
            for group, position in places:
                forms = self.groups[group].dims[position].forms
                if wanted in forms:
                    choice = state.choices[group].with_form(position, forms.index(wanted))
                    state = state.with_choice(group, choice)
            return state

        return move

    def _contraction_moves(self, state: State, indices: list[int]) -> Iterator[Move]:
        for index in indices:
            group = self.groups[index]
            if group.module in ("Parameter", "Linear?", "Norm", "Bias", "Depthwise"):
                for contraction in range(len(group.contractions)):
                    if contraction != state.choices[index].contraction:
                        yield _contraction(index, contraction)

    def _piece_moves(self, state: State, indices: list[int], axis: str) -> Iterator[Move]:
        for index in indices:
            for dim in range(len(self.groups[index].dims)):
                form = state.choices[index].form(self.groups[index], dim)
                if len(form.pieces) < 2:
                    continue
                for piece, content in enumerate(form.pieces):
                    if axis in content.items or axis in form.prefix:
                        for exponent in (-ONE, -HALF, Fraction(0)):
                            yield self._piece(index, dim, piece, axis, exponent)

    def _piece(self, index: int, dim: int, piece: int, axis: str, exponent: Fraction) -> Move:
        places = self._places(index, dim)

        def move(state: State) -> State:
            for group, position in places:
                if piece < len(state.choices[group].form(self.groups[group], position).pieces):
                    state = state.with_choice(group, state.choices[group].with_piece(position, piece, axis, exponent))
            return state

        return move


def _may_move(key: str, value: object) -> bool:
    if isinstance(value, float):
        return bool(re.search(r"scal|mult|factor|expand|alpha|temperature|base", key)) and "init" not in key
    return not re.search(r"_ids?$|vocab|position|layer|seed|num_labels|initializer|rope_theta|chunk", key)


def _power(indices: list[int], axis: str, exponent: Fraction, offset: int) -> Move:
    def move(state: State) -> State:
        for index in indices:
            state = state.with_choice(index, state.choices[index].with_power(axis, exponent, offset))
        return state

    return move


def _contraction(index: int, contraction: int) -> Move:
    def move(state: State) -> State:
        return state.with_choice(index, replace(state.choices[index], contraction=contraction))

    return move


def _both(first: Move, second: Move) -> Move:
    return lambda state: second(first(state))


def _difficulty(idea: Idea) -> tuple[int, str]:
    """Residual stream first, since every other axis touches it; then what is usually plain; heads' sizes last."""
    kinds = ("embed", "ffn", "kv", "g", "h")
    if idea.name in kinds:
        return kinds.index(idea.name), idea.name
    return (20 if idea.name in HEAD_SIZES else 10), idea.name


__all__ = ["DEFAULT_BUDGET", "Budget", "Found", "Search", "initial_state", "is_tied", "last_norm", "split_last"]

"""Search for layouts under which each axis widens exactly, guided by the first module that differs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from mupscale_cli.infer.moves import Moves
from mupscale_cli.infer.shapes import CandidateAxis
from mupscale_cli.infer.trials import Outcome, State, TrialRunner
from mupscale_cli.infer.vocabulary import HEAD_SIZES, ROTATED, kind_of
from mupscale_cli.text import counted

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of the search, in computing time: a draft does not depend on what else a machine does.

    Attributes:
        trials: trials for each axis.
        seconds: seconds for each axis.
        total: seconds for all axes; afterwards each remaining axis gets one trial.
    """

    trials: int = 160
    seconds: float = 5.0
    total: float = 15.0


DEFAULT_BUDGET = Budget()


@dataclass
class SearchResult:
    """The result of a search.

    Attributes:
        state: the choices.
        solved: axes that widen exactly.
        unsolved: the other axes, each with its best outcome.
    """

    state: State
    solved: tuple[str, ...] = ()
    unsolved: dict[str, Outcome] = field(default_factory=dict)


class Search:
    """Searches for choices under which every axis widens exactly.

    Args:
        runner: runs the trials.
        budget: limits on trials and time.
        note: receives progress messages.
        only: the axes to solve; None for all.
    """

    def __init__(self, runner: TrialRunner, budget: Budget, note: Note, *, only: tuple[str, ...] | None = None) -> None:
        self.runner = runner
        self.moves = Moves(runner)
        self.budget = budget
        self.note = note
        self.axes = [axis for axis in runner.axes.candidates if only is None or axis.name in only]
        self.failed: dict[str, State] = {}  # the state with which each axis failed last
        self.deadline = float("inf")

    def run(self, state: State) -> SearchResult:
        """Solve one axis after another, try again those that failed, and then widen all solved axes together."""
        result = SearchResult(state)
        axes = sorted(self.axes, key=_difficulty)
        self.deadline = time.process_time() + self.budget.total
        for attempt in range(2):
            for axis in axes:
                if axis.name not in result.solved and self.failed.get(axis.name) != result.state:
                    self._solve(result, axis)
            if attempt == 0 and not result.unsolved:
                break
        self._join(result)
        return result

    def _solve(self, result: SearchResult, axis: CandidateAxis) -> None:
        started = self.runner.num_trials
        state, outcome = self._improve(result.state, axis, result.solved, {axis.name: 2})
        num_trials = self.runner.num_trials - started
        if outcome.agrees:
            result.state = state
            result.solved = (*result.solved, axis.name)
            result.unsolved.pop(axis.name, None)
            self.note(f"axis {axis.name}: exact, error {outcome.error:.1e} after {counted(num_trials, 'trial')}")
        else:
            result.unsolved[axis.name] = outcome
            self.failed[axis.name] = result.state
            where = outcome.problem or f"first difference in {outcome.first or 'the output'}"
            self.note(
                f"axis {axis.name}: not exact ({where}; error {outcome.error:.1e}, {counted(num_trials, 'trial')})"
            )

    def _join(self, result: SearchResult) -> None:
        """Widen all solved axes together. Search again for an axis that works only alone, or else give it up."""
        if len(result.solved) < 2 or self._is_exact(result.state, result.solved):
            return
        axes = {axis.name: axis for axis in self.runner.axes.candidates}
        together: list[str] = []
        for name in result.solved:
            factors = dict.fromkeys((*together, name), 2)
            state, outcome = self._improve(result.state, axes[name], result.solved, factors)
            if outcome.agrees and (not together or self._is_exact(state, together)):
                result.state = state
                together.append(name)
            else:
                problem = f"exact alone, but not together with {', '.join(together)}"
                result.unsolved[name] = replace(outcome, problem=problem)
                self.note(f"axis {name}: {problem}")
        result.solved = tuple(together)

    def _is_exact(self, state: State, names: list[str] | tuple[str, ...]) -> bool:
        """Return whether some axes widen exactly together."""
        return self.runner.evaluate(state, dict.fromkeys(names, 2)).agrees

    def _are_exact_alone(self, state: State, names: tuple[str, ...]) -> bool:
        return all(self._is_exact(state, (name,)) for name in names)

    def _improve(
        self, state: State, axis: CandidateAxis, solved: tuple[str, ...], factors: dict[str, int]
    ) -> tuple[State, Outcome]:
        """Climb from a state until the factors widen exactly; every solved axis must stay exact alone."""
        best = self.runner.evaluate(state, factors)
        kind = kind_of(axis.name)
        is_hopeless = kind in ROTATED and self.runner.is_rotary
        trials = self.budget.trials // (20 if is_hopeless else 4 if kind in HEAD_SIZES else 1)
        end, last = min(time.process_time() + self.budget.seconds, self.deadline), self.runner.num_trials + trials
        seen = {state}
        while not best.agrees:
            better: tuple[State, Outcome] | None = None
            for neighbor in self.moves.neighbors(state, axis, best):
                if neighbor in seen:
                    continue
                if time.process_time() > end or self.runner.num_trials > last:
                    return state, best
                seen.add(neighbor)
                outcome = self.runner.evaluate(neighbor, factors)
                if outcome.agrees and self._are_exact_alone(neighbor, solved):
                    return neighbor, outcome
                reference = better[1] if better else best
                if outcome.progress > reference.progress and self._are_exact_alone(neighbor, solved):
                    better = neighbor, outcome
                    if outcome.progress > best.progress + 2:
                        break
            if better is None:
                return state, best
            state, best = better
        return state, best


def _difficulty(axis: CandidateAxis) -> tuple[int, str]:
    """Order axes: the residual stream first because all others touch it, then usual axes, head sizes last."""
    usual = ("embed", "ffn", "kv", "g", "h")
    kind = kind_of(axis.name)
    if kind in usual:
        return usual.index(kind), axis.name
    return (20 if kind in HEAD_SIZES else 10), axis.name

"""Prove a drafted recipe: widen tiny checkpoints from disk to disk, and fix the axes that do not widen exactly."""

from __future__ import annotations

import tempfile
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mupscale_cli.errors import MupscaleError
from mupscale_cli.infer.architecture import UserArchitecture, random_model
from mupscale_cli.infer.errors import InferError
from mupscale_cli.infer.search import Note
from mupscale_cli.infer.solving import Solution
from mupscale_cli.infer.trials import TOLERANCE
from mupscale_cli.infer.write import Draft, recipe_text
from mupscale_cli.tasks.widen import widen

_WIDTH = 115  # of the header's lines


@dataclass(frozen=True)
class _Widening:
    """Factors to try, with a label; `axis` is None for all axes together."""

    label: str
    factors: dict[str, int]
    axis: str | None = None


@dataclass(frozen=True)
class _Failure:
    """A widening of a solution that is not exact, and the problem."""

    solution: Solution
    widening: _Widening
    problem: str


def prove(draft: Draft, solutions: Sequence[Solution], version: str, note: Note) -> tuple[Draft, dict[str, float]]:
    """Widen by each axis alone and by all axes together; fix an axis that is not exact and start over.

    Args:
        draft: the draft.
        solutions: what it was written from, with tied and untied readouts.
        version: the library that has the architecture, with its version.
        note: receives progress messages.

    Returns:
        The draft with its header, and the largest relative difference of each widening.

    Raises:
        InferError: no axis would be left, or the axes conflict and none of them resolves it.
    """
    while True:
        errors, failure = _widen_all(draft, solutions)
        if failure is None:
            return replace(draft, header=_header(draft, errors, version)), errors
        axis = failure.widening.axis or _conflicting_axis(draft, failure.solution, note)
        movable = draft.movable
        if axis not in movable or len(movable) == 1:
            raise InferError(
                f"the drafted recipe for `{draft.name}` fails for {failure.widening.label}: {failure.problem}",
                excerpt=recipe_text(draft),
            )
        note(f"axis {axis}: not exact from disk to disk, so it is fixed: {failure.problem}")
        reason = f"no layout was found that is exact from disk to disk: {failure.problem[:200]}"
        draft = draft.with_fixed({axis: reason})


def _widen_all(draft: Draft, solutions: Sequence[Solution]) -> tuple[dict[str, float], _Failure | None]:
    """Return the error of each widening, and the first that is not exact."""
    errors: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="mupscale-") as folder:
        recipe = _write_recipe(draft, Path(folder))
        for number, solution in enumerate(solutions):
            source = _save_tiny(solution, Path(folder) / f"narrow{number}")
            tie = f"{'tied' if solution.tied else 'untied'}, " if len(solutions) > 1 else ""
            for widening in _widenings(draft):
                if number and "embed" not in widening.factors:
                    continue  # only the residual stream tells tied and untied readouts apart
                error = _widen(solution, source, recipe, widening.factors, Path(folder) / "wide")
                if isinstance(error, str):
                    return errors, _Failure(solution, widening, error)
                errors[tie + widening.label] = error
    return errors, None


def _widenings(draft: Draft) -> Iterator[_Widening]:
    movable = draft.movable
    for name in movable:
        yield _Widening(f"{name} x2", _with_aliases(draft, {name: 2}), name)
    if len(movable) == 1:
        yield _Widening(f"{movable[0]} x3", _with_aliases(draft, {movable[0]: 3}), movable[0])
    else:
        for factor in (2, 3):
            yield _Widening(f"all axes x{factor}", _with_aliases(draft, dict.fromkeys(movable, factor)))


def _conflicting_axis(draft: Draft, solution: Solution, note: Note) -> str | None:
    """Find an axis without which all others widen exactly together."""
    movable = draft.movable
    note("each axis is exact alone, but not all together; looking for the axis that conflicts")
    with tempfile.TemporaryDirectory(prefix="mupscale-") as folder:
        recipe = _write_recipe(draft, Path(folder))
        source = _save_tiny(solution, Path(folder) / "narrow")
        for axis in sorted(movable, key=lambda name: name in draft.widen):
            factors = _with_aliases(draft, {name: 2 for name in movable if name != axis})
            if factors and isinstance(_widen(solution, source, recipe, factors, Path(folder) / "wide"), float):
                return axis
    return None


def _with_aliases(draft: Draft, factors: Mapping[str, int]) -> dict[str, int]:
    return {name: factor for name, factor in draft.axes.with_aliases(factors).items() if factor > 1}


def _write_recipe(draft: Draft, folder: Path) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(recipe_text(draft), encoding="utf-8")
    return file


def _save_tiny(solution: Solution, directory: Path) -> Path:
    architecture = solution.architecture
    return architecture.save(random_model(architecture), architecture.config, directory)


def _widen(solution: Solution, source: Path, recipe: Path, factors: Mapping[str, int], output: Path) -> float | str:
    """Widen from disk to disk; return the largest relative difference, or a problem as text."""
    architecture = solution.architecture
    try:
        result = widen(
            source,
            output,
            axes=factors,
            recipe=recipe,
            overwrite=True,
            dtype="float64",
            device="cpu",
            model=architecture.name if isinstance(architecture, UserArchitecture) else None,
        )
    except MupscaleError as error:
        return str(error)
    if result.verification is None:
        return f"not verified: {result.skipped}"
    worst = max((comparison.max_rel for comparison in result.verification.comparisons), default=float("inf"))
    return worst if worst < TOLERANCE else f"the outputs differ by {worst:.1e}"


def _header(draft: Draft, errors: Mapping[str, float], version: str) -> tuple[str, ...]:
    worst = max(errors.values(), default=0.0)
    labels = dict.fromkeys(label.rpartition(", ")[2] for label in errors)
    both = " tied and untied," if draft.tied and draft.untied else ""
    text = (
        f"Drafted by `mupscale recipes infer` for {draft.name} and verified on random tiny models,{both} from disk to "
        f"disk in float64 with {version}: largest relative difference {worst:.1e} for {', '.join(labels)}. "
        "Comments mark what was found by trial."
    )
    if draft.axes.given_up:
        text += f" Not widened, because no axis describes them: {', '.join(draft.axes.given_up)}."
    return tuple(textwrap.wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False))

"""Prove a drafted recipe: widen random tiny models by it, and fix the axes that do not widen exactly."""

from __future__ import annotations

import tempfile
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mupscale_cli.architecture.loading import read_draft
from mupscale_cli.architecture.types import Recipe
from mupscale_cli.checkpoints.reading import open_checkpoint
from mupscale_cli.dtypes import TensorSpec, dtype_of
from mupscale_cli.engine.streaming import expand_whole
from mupscale_cli.infer.architecture import Architecture, random_model
from mupscale_cli.infer.differences import TOLERANCE, outputs_error
from mupscale_cli.infer.draft import Draft
from mupscale_cli.infer.errors import InferError, first_line
from mupscale_cli.infer.search import Note
from mupscale_cli.infer.solving import Solution
from mupscale_cli.infer.write import recipe_text
from mupscale_cli.plan import Request, make_plan
from mupscale_cli.plan.request import Amount

_WIDTH = 115  # of the header's lines


@dataclass(frozen=True)
class ProofModel:
    """A random tiny model, as its checkpoint stores it.

    Attributes:
        architecture: builds it.
        tied: whether the readout shares the embedding's weight.
        config: the content of its config file.
        tensors: its tensors.
        outputs: what it computes, by name.
    """

    architecture: Architecture
    tied: bool
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]

    @classmethod
    def of(cls, architecture: Architecture, *, tied: bool = False) -> ProofModel:
        """Build and save the tiny model of an architecture, and read what was saved."""
        model = random_model(architecture)
        with tempfile.TemporaryDirectory(prefix="mupscale-") as folder:
            config = open_checkpoint(architecture.save(model, architecture.config, Path(folder) / "narrow")).config
        tensors = architecture.disk_tensors(model)
        loaded = architecture.fill(architecture.config, tensors)  # as every wide model is
        return cls(architecture, tied, config or {}, tensors, architecture.run(loaded))

    def widen(self, recipe: Recipe, factors: Mapping[str, Amount]) -> float | str:
        """Widen by factors or sizes of single axes; return the outputs' largest relative difference, or a problem."""
        architecture = self.architecture
        specs = [TensorSpec(name, dtype_of(each.dtype).name, tuple(each.shape)) for name, each in self.tensors.items()]
        try:
            plan = make_plan(recipe, specs, self.config, Request(axes=factors), None)
            wide = {each.target.name: expand_whole(each, self.tensors[each.source.name]) for each in plan.tensors}
            config = architecture.settings(plan.config or {})
            outputs = architecture.run(architecture.fill(config, wide))
        except Exception as error:  # noqa: BLE001 (architectures raise anything)
            return first_line(error)
        worst = outputs_error(self.outputs, outputs)
        if isinstance(worst, str):
            return worst
        return worst if worst < TOLERANCE else f"the outputs differ by {worst:.1e}"


@dataclass(frozen=True)
class _Widening:
    """Factors to try, with a label; `axis` is None for all axes together."""

    label: str
    factors: dict[str, int]
    axis: str | None = None


@dataclass(frozen=True)
class _Failure:
    """A widening of a model that is not exact, and the problem."""

    model: ProofModel
    widening: _Widening
    problem: str


def prove(draft: Draft, solutions: Sequence[Solution], note: Note) -> tuple[Draft, dict[str, float]]:
    """Widen by each axis alone and by all axes together; fix an axis that is not exact and start over.

    Args:
        draft: the draft.
        solutions: what it was written from, with tied and untied readouts.
        note: receives progress messages.

    Returns:
        The draft, and the largest relative difference of each widening.

    Raises:
        InferError: no axis would be left, or the axes conflict and none of them resolves it.
    """
    models = [ProofModel.of(solution.architecture, tied=solution.tied) for solution in solutions]
    while True:
        errors, failure = _widen_all(draft, models)
        if failure is None:
            return draft, errors
        axis = failure.widening.axis or _conflicting_axis(draft, failure.model, note)
        movable = draft.movable
        if axis not in movable or len(movable) == 1:
            raise InferError(
                f"the drafted recipe for `{draft.name}` fails for {failure.widening.label}: {failure.problem}",
                excerpt=recipe_text(draft),
            )
        note(f"axis {axis}: the recipe is not exact, so it is fixed: {failure.problem}")
        reason = f"no layout was found that is exact: {failure.problem[:200]}"
        draft = draft.with_fixed({axis: reason})


def _widen_all(draft: Draft, models: Sequence[ProofModel]) -> tuple[dict[str, float], _Failure | None]:
    """Return the error of each widening, and the first that is not exact."""
    errors: dict[str, float] = {}
    recipe = read_draft(recipe_text(draft), draft.name)
    for number, model in enumerate(models):
        tie = f"{'tied' if model.tied else 'untied'}, " if len(models) > 1 else ""
        for widening in _widenings(draft):
            if number and "embed" not in widening.factors:
                continue  # only the residual stream tells tied and untied readouts apart
            error = model.widen(recipe, widening.factors)
            if isinstance(error, str):
                return errors, _Failure(model, widening, error)
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


def _conflicting_axis(draft: Draft, model: ProofModel, note: Note) -> str | None:
    """Find an axis without which all others widen exactly together."""
    movable = draft.movable
    note("each axis is exact alone, but not all together; looking for the axis that conflicts")
    recipe = read_draft(recipe_text(draft), draft.name)
    for axis in sorted(movable, key=lambda name: name in draft.widen):
        factors = _with_aliases(draft, {name: 2 for name in movable if name != axis})
        if factors and isinstance(model.widen(recipe, factors), float):
            return axis
    return None


def _with_aliases(draft: Draft, factors: Mapping[str, int]) -> dict[str, int]:
    return {name: factor for name, factor in draft.axes.with_aliases(factors).items() if factor > 1}


def header(draft: Draft, errors: Mapping[str, float], version: str) -> tuple[str, ...]:
    """Return lines that say how a draft was verified.

    Args:
        draft: the draft.
        errors: the largest relative difference of each widening.
        version: the library that has the architecture, with its version.
    """
    worst = max(errors.values(), default=0.0)
    labels = dict.fromkeys(label.rpartition(", ")[2] for label in errors)
    both = " tied and untied," if draft.tied and draft.untied else ""
    text = (
        f"Drafted by `mupscale recipes infer` for {draft.name} and verified on random tiny models,{both} in "
        f"float64 with {version}: largest relative difference {worst:.1e} for {', '.join(labels)}. "
        "Comments mark what was found by trial."
    )
    if draft.axes.given_up:
        text += (
            f" Not widened, because no axis describes them or nothing verifies it: {', '.join(draft.axes.given_up)}."
        )
    return tuple(textwrap.wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False))

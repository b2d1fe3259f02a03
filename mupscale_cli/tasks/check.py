"""Check a recipe: statically against a model's layers, and by widening a tiny random model."""

from __future__ import annotations

import itertools
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Union

from mupscale_cli.architecture.types import Recipe
from mupscale_cli.checkpoints.reading import Checkpoint
from mupscale_cli.errors import ConfigError, MupscaleError, PlanError, SizeError
from mupscale_cli.plan import Plan, Request, make_plan
from mupscale_cli.plan.copies import Axis
from mupscale_cli.tasks.planning import identity_plan
from mupscale_cli.tasks.source import Source, find_source
from mupscale_cli.tasks.static_check import find_static_mistakes
from mupscale_cli.tasks.widen import widen

if TYPE_CHECKING:
    from mupscale_cli.verification.result import FunctionCheck

EXACT = 1e-10  # a forgotten `/` moves the logits of a small model by at least 5e-8, rounding by 1e-14
_MAX_LINKED = 3  # axes that are widened along with one
_TARGETS = 50  # sizes of all axes at once that are tried, until some are possible

Factors = Mapping[str, Union[int, Fraction]]


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial widening of a model.

    Attributes:
        factors: factor of each widened axis.
        tie: how a tied readout was treated; None for the recipe's default.
        error: largest relative difference between the outputs of both models; None if they were not compared.
        problem: what went wrong; None if nothing did.
        refusal: why these sizes are impossible, which is no mistake of the recipe; None if they are possible.
    """

    factors: Factors
    tie: str | None
    error: float | None
    problem: str | None
    refusal: str | None = None


@dataclass(frozen=True, slots=True)
class RecipeCheck:
    """The result of checking a recipe on one model.

    Attributes:
        mistakes: mistakes of the recipe that are visible without running it.
        trials: trial widenings and their outcomes.
    """

    mistakes: tuple[str, ...]
    trials: tuple[Trial, ...]

    @property
    def passed(self) -> bool:
        return not self.mistakes and not any(trial.problem for trial in self.trials)

    @property
    def worst(self) -> float:
        """The largest error of all trials; 0 if none compared the models."""
        return max((trial.error for trial in self.trials if trial.error is not None), default=0.0)


def check_model(
    source: Path | Source, recipe: str | Path | None = None, *, quick: bool = False, model: str | None = None
) -> RecipeCheck:
    """Check a recipe on a model that fits into memory many times over.

    Widen the model from disk to disk and compare both models in float64: all axes together by 2 and to unrelated
    sizes, the axes of a bare factor by 2 and by 3, each axis alone by 2, by 3 and by 1.5, and once for each way to
    treat a tied readout.

    Args:
        source: a small checkpoint.
        recipe: name or file of the recipe. Default: chosen by the model.
        quick: only widen all axes together.
        model: `path/or/module.py:build` of a user-defined model. Default: the model of transformers.

    Raises:
        MupscaleError: the recipe does not describe the model.
    """
    from mupscale_cli.engine.threads import one_thread

    source = find_source(source)
    plan = identity_plan(source.checkpoint, recipe)
    trials = []
    with one_thread():
        mistakes = tuple(find_static_mistakes(source.checkpoint, plan.recipe, model))
        for asked, tie in _trials(source.checkpoint, plan, quick=quick):
            trials.append(asked if isinstance(asked, Trial) else run_trial(source, recipe, asked, tie, model))
    return RecipeCheck(mistakes, tuple(trials))


def _trials(checkpoint: Checkpoint, plan: Plan, *, quick: bool) -> Iterator[tuple[Factors | Trial, str | None]]:
    """Yield the factors and the treatment of a tied readout of each trial, and trials that are impossible."""
    recipe = plan.recipe
    everything = all_factors(recipe, checkpoint)
    if everything:
        yield everything, None
    target = unrelated_sizes(recipe, checkpoint)
    if target is not None:
        yield target, None
    if quick and everything is not None:
        return
    default = [axis for axis in recipe.widen if axis in plan.used]
    if default:
        yield dict.fromkeys(default, 2), None
    if quick:
        return
    if default:
        yield dict.fromkeys(default, 3), None
    tried: list[Factors | Trial] = []
    for axis in recipe.axis_names:
        for one in _single_trials(recipe, checkpoint, axis):
            if one is not None and one not in tried:
                tried.append(one)
                yield one, None
    if plan.tie is not None and recipe.tie is not None:
        for way in recipe.tie.ways:
            if way != plan.tie:
                yield dict.fromkeys(default, 2), way


def all_factors(recipe: Recipe, checkpoint: Checkpoint) -> dict[str, int] | None:
    """Return factors that widen every axis of a checkpoint by 2, and linked axes by their product.

    Return None if the config cannot express such a widening, or the recipe requires other sizes.
    """
    narrow = identity_plan(checkpoint, recipe)
    factors = {name: 2 for name in recipe.axis_names if name in narrow.used and name not in recipe.fixed}
    for _ in recipe.links:
        for link in recipe.links:
            factors[link.axis] = math.prod(factors.get(name, 1) for name in link.product)
    factors = {name: factor for name, factor in factors.items() if factor > 1 and name in narrow.used}
    try:
        make_plan(recipe, checkpoint.specs, checkpoint.config, Request(axes=factors), None)
    except (ConfigError, SizeError):
        return None
    except MupscaleError:
        return factors
    return factors


def _single_trials(recipe: Recipe, checkpoint: Checkpoint, axis: str) -> Iterator[Factors | Trial | None]:
    """Yield factors that widen one axis by 2, by 3 and by half, or trials that say why that is impossible."""
    found = next(one for one in identity_plan(checkpoint, recipe).axes if one.name == axis)
    factors: list[int | Fraction] = [2, 3]
    if found.size is not None and found.size > 1 and not found.is_spread:
        factors.append(Fraction((3 * found.size + 1) // 2, found.size))
    for factor in factors:
        try:
            yield smallest_factors(recipe, checkpoint, axis, factor)
        except SizeError as error:
            yield Trial({axis: factor}, None, None, None, error.message)


def unrelated_sizes(recipe: Recipe, checkpoint: Checkpoint) -> Factors | None:
    """Return factors that widen all axes that can grow to any size, to unrelated sizes; None if none can."""
    narrow = identity_plan(checkpoint, recipe)
    sizes = {axis.name: axis for axis in narrow.axes if axis.size and axis.name in narrow.used}
    free = [name for name in sizes if name not in recipe.fixed and name not in {link.axis for link in recipe.links}]
    refused: set[str | None] = set()
    for turn in range(_TARGETS):
        factors: dict[str, int | Fraction] = {
            name: Fraction(2 + (turn + number) % 2) if sizes[name].is_spread else _unrelated(sizes[name], turn, number)
            for number, name in enumerate(free)
            if name not in refused
        }
        for _ in recipe.links:
            for link in recipe.links:
                factors[link.axis] = math.prod((factors.get(name, 1) for name in link.product), start=Fraction(1))
        factors = {name: factor for name, factor in factors.items() if factor > 1 and name in narrow.used}
        try:
            make_plan(recipe, checkpoint.specs, checkpoint.config, Request(axes=factors), None)
        except SizeError as error:
            refused |= {error.axis}.union(*(link.product for link in recipe.links if link.axis == error.axis))
        except MupscaleError:
            continue
        else:
            return factors or None
    return None


def _unrelated(axis: Axis, turn: int, number: int) -> Fraction:
    assert axis.size is not None
    return 1 + Fraction(1 + (5 * turn + 7 * number + axis.size // 2) % axis.size, axis.size)


def smallest_factors(
    recipe: Recipe, checkpoint: Checkpoint, axis: str, factor: int | Fraction
) -> dict[str, int | Fraction] | None:
    """Return factors that widen one axis and as few linked axes as possible.

    Args:
        recipe: the recipe.
        checkpoint: the checkpoint to widen.
        axis: the axis to widen.
        factor: its factor.

    Returns:
        The factor of each axis; None if the axis is fixed, absent from the checkpoint or cannot be widened. If the
        config refuses every combination, the first one that it refuses.

    Raises:
        SizeError: no combination has sizes that are possible.
    """
    used = identity_plan(checkpoint, recipe).used
    others = [name for name in recipe.axis_names if name in used and name != axis and name not in recipe.fixed]
    if axis in recipe.fixed or axis not in used:
        return None
    refused = None
    impossible = None
    for count in range(_MAX_LINKED + 1):
        for along in itertools.combinations(others, count):
            factors = dict.fromkeys((axis, *along), factor)
            try:
                plan = make_plan(recipe, checkpoint.specs, checkpoint.config, Request(axes=factors), None)
            except ConfigError:
                refused = refused or factors
                continue
            except SizeError as error:
                impossible = impossible or error
                continue
            except PlanError:
                continue
            except MupscaleError:
                return factors  # a mistake of the recipe, which a trial will show
            widened = {one.name: one.ratio for one in plan.axes if one.ratio > 1}
            whole = {name: int(ratio) if ratio.denominator == 1 else ratio for name, ratio in widened.items()}
            return whole if axis in whole else None
    if impossible is not None:
        raise impossible
    return refused if type(factor) is int else None


def run_trial(source: Source, recipe: str | Path | None, factors: Factors, tie: str | None, model: str | None) -> Trial:
    """Widen a model, compare both in float64, and remove the wide one."""
    folder = Path(tempfile.mkdtemp(prefix="mupscale-"))
    try:
        output = folder / f"wide{source.suffix if source.checkpoint.is_file else ''}"
        widened = widen(source, output, axes=factors, recipe=recipe, tie=tie, dtype="float64", model=model)
    except MupscaleError as error:
        return Trial(factors, tie, None, error.message)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    found = widened.verification
    if found is None:
        return Trial(factors, tie, None, f"not verified: {widened.skipped}")
    return Trial(factors, tie, found.max_rel, None if found.max_rel < EXACT else _difference(found))


def _difference(found: FunctionCheck) -> str:
    where = found.first_difference.what if found.first_difference else "none of the compared modules"
    return f"the models differ by {found.max_rel:.1e}; first module that differs: {where}"

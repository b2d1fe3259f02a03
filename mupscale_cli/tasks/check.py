"""Whether a recipe is right: what can be seen without running, and what a tiny random model shows."""

from __future__ import annotations

import itertools
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mupscale_cli.architecture.types import Recipe
from mupscale_cli.checkpoints.reading import Checkpoint
from mupscale_cli.errors import ConfigError, MupscaleError, PlanError
from mupscale_cli.plan import Plan, make_plan, resolve_factors
from mupscale_cli.plan.dims import DimMap
from mupscale_cli.tasks.planning import identity_plan
from mupscale_cli.tasks.source import find_source
from mupscale_cli.tasks.widen import widen

if TYPE_CHECKING:
    from torch import nn

    from mupscale_cli.verification.result import Verification

EXACT = 1e-10  # a forgotten `/` of a small model moves its logits by 5e-8 at least, rounding by 1e-14
_MOST_LINKED = 3  # axes that move along with one


@dataclass(frozen=True, slots=True)
class Trial:
    """One widening of a model that was tried.

    Attributes:
        factors: of the axes that were widened.
        tie: where the factor of a tied readout went, None if it was the recipe's choice.
        error: largest relative difference between both models' outputs; None where it came to no comparison.
        problem: what went wrong, None if nothing did.
    """

    factors: Mapping[str, int]
    tie: str | None
    error: float | None
    problem: str | None


@dataclass(frozen=True, slots=True)
class RecipeCheck:
    """What checking a recipe on one model found.

    Attributes:
        mistakes: of the recipe, seen without running it.
        trials: widenings and their outcome.
    """

    mistakes: tuple[str, ...]
    trials: tuple[Trial, ...]

    @property
    def passed(self) -> bool:
        return not self.mistakes and not any(trial.problem for trial in self.trials)

    @property
    def worst(self) -> float:
        """The largest difference of all trials."""
        return max((trial.error for trial in self.trials if trial.error is not None), default=0.0)


def check_model(
    source: Path, recipe: str | Path | None = None, *, quick: bool = False, model: str | None = None
) -> RecipeCheck:
    """Check a recipe on a model that fits into memory many times over.

    It is widened, from disk to disk, on every axis that there is by 2, on those that a bare factor
    widens by 2 and by 3, on each axis alone by 2 and by 3, and in each way that a tied readout may be
    treated; both models are compared in float64.

    Args:
        source: a small checkpoint.
        recipe: name or file; found by the model if not given.
        quick: only every axis together by 2.
        model: `path/or/module.py:build` for an own model instead of transformers'.

    Raises:
        MupscaleError: the recipe and the model do not belong together.
    """
    from mupscale_cli.engine.threads import one_thread

    plan = identity_plan(find_source(source).checkpoint, recipe)
    trials = []
    with one_thread():
        mistakes = tuple(find_static_mistakes(source, plan.recipe, model))
        for factors, tie in _trials(source, plan, quick=quick):
            trials.append(_try(source, recipe, factors, tie, model))
    return RecipeCheck(mistakes, tuple(trials))


def _trials(source: Path, plan: Plan, *, quick: bool) -> Iterator[tuple[Mapping[str, int], str | None]]:
    recipe = plan.recipe
    checkpoint = find_source(source).checkpoint
    everything = all_factors(recipe, checkpoint)
    if everything is not None:
        yield everything, None
    if quick and everything is not None:
        return
    default = [axis for axis in recipe.widen if axis in plan.used]
    yield dict.fromkeys(default, 2), None
    if quick:
        return
    yield dict.fromkeys(default, 3), None
    seen = []
    for axis in recipe.axis_names:
        for factor in (2, 3):
            factors = smallest_factors(recipe, checkpoint, axis, factor)
            if factors is not None and factors not in seen:
                seen.append(factors)
                yield factors, None
    if plan.tie is not None and recipe.tie is not None:
        for way in recipe.tie.ways:
            if way != plan.tie:
                yield dict.fromkeys(default, 2), way


def all_factors(recipe: Recipe, checkpoint: Checkpoint) -> dict[str, int] | None:
    """Factors that widen every axis of a checkpoint by 2, and by more what others are tied to; None if none do."""
    narrow = identity_plan(checkpoint, recipe)
    factors = {name: 2 for name in recipe.axis_names if name in narrow.used and name not in recipe.fixed}
    for _ in recipe.links:
        for link in recipe.links:
            factors[link.axis] = math.prod(factors.get(name, 1) for name in link.product)
    factors = {name: factor for name, factor in factors.items() if factor > 1}
    try:
        resolved = resolve_factors(recipe, None, factors)
        make_plan(recipe, checkpoint.specs, checkpoint.config, resolved, None)
    except ConfigError:
        return None
    except MupscaleError:
        return factors
    return factors


def smallest_factors(recipe: Recipe, checkpoint: Checkpoint, axis: str, factor: int) -> dict[str, int] | None:
    """Factors that widen one axis, and beside it only what is tied to it; None where that cannot be.

    Args:
        recipe: the architecture.
        checkpoint: of which some tensor must have the axis.
        axis: the axis.
        factor: its factor.
    """
    used = identity_plan(checkpoint, recipe).used
    others = [name for name in recipe.axis_names if name in used and name != axis and name not in recipe.fixed]
    if axis in recipe.fixed or axis not in used:
        return None
    refused = None
    for count in range(_MOST_LINKED + 1):
        for along in itertools.combinations(others, count):
            factors = dict.fromkeys((axis, *along), factor)
            try:
                resolved = resolve_factors(recipe, None, factors)
                plan = make_plan(recipe, checkpoint.specs, checkpoint.config, resolved, None)
            except ConfigError:
                refused = refused or factors
                continue
            except PlanError:
                continue
            except MupscaleError:
                return factors  # the recipe's mistake, which trying it tells
            return factors if axis in plan.factors else None
    return refused


def _try(
    source: Path, recipe: str | Path | None, factors: Mapping[str, int], tie: str | None, model: str | None
) -> Trial:
    folder = Path(tempfile.mkdtemp(prefix="mupscale-"))
    try:
        output = folder / f"wide{source.suffix}"
        widened = widen(source, output, axes=factors, recipe=recipe, tie=tie, dtype="float64", model=model)
    except MupscaleError as error:
        return Trial(factors, tie, None, error.message)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    found = widened.verification
    if found is None:
        return Trial(factors, tie, None, f"not verified: {widened.skipped}")
    return Trial(factors, tie, found.max_rel, None if found.max_rel < EXACT else _difference(found))


def _difference(found: Verification) -> str:
    where = found.first_difference.what if found.first_difference else "none of the modules that were compared"
    return f"the models differ by {found.max_rel:.1e}; first module that differs: {where}"


# Without running ----------------------------------------------------------------------------------


def find_static_mistakes(source: Path, recipe: Recipe, own: str | None = None) -> Iterator[str]:
    """What a recipe says of a model's layers that their kind contradicts.

    A layer sums over its inputs and over nothing else, so of the weight of a Linear layer the columns,
    and only they, carry `/` on every axis that is widened.

    Args:
        source: a small checkpoint.
        recipe: the architecture.
        own: `path/or/module.py:build` for an own model instead of transformers'.

    Raises:
        MupscaleError: the recipe and the model do not belong together, or the model cannot be built.
    """
    import torch

    from mupscale_cli.verification.activations import name_in
    from mupscale_cli.verification.models import build_reference_model, build_user_model, load_user_module

    checkpoint = find_source(source).checkpoint
    if own is None:
        model = build_reference_model(checkpoint, torch.float32)
    else:
        model = build_user_model(load_user_module(own)[1], checkpoint, torch.float32)
    factors = {axis: 1 if axis in recipe.fixed else 2 for axis in recipe.axis_names}
    plan = _loose_plan(recipe, checkpoint, factors)
    modules = dict(model.named_modules())
    shared = _shared(model)
    told = set()
    for tensor in plan.tensors:
        owner, _, kind = recipe.parameter_name(tensor.source.name).rpartition(".")
        name = name_in(model, owner, modules)
        if name is None or kind != "weight" or tensor.rule in told:
            continue
        inputs = _input_dimension(modules[name])
        if inputs is None or id(modules[name].weight) in shared:
            continue
        for position, dim in enumerate(tensor.dims):
            wrong = _widened(dim, contracted=position != inputs)
            if wrong:
                told.add(tensor.rule)
                layer = type(modules[name]).__name__
                yield (
                    f"`{tensor.rule}`: {layer} sums over dimension {position}, which is widened without `/`: "
                    if position == inputs
                    else f"`{tensor.rule}`: {layer} does not sum over dimension {position}, which has a `/`: "
                ) + f"`{tensor.layout}`"


def _loose_plan(recipe: Recipe, checkpoint: Checkpoint, factors: Mapping[str, int]) -> Plan:
    """A plan of all axes at once, whatever they are tied to, and without asking the widened config."""
    loose = replace(recipe, links=(), config=())
    return make_plan(loose, checkpoint.specs, checkpoint.config, factors, None, check_config=False)


def _shared(model: nn.Module) -> set[int]:
    """Parameters that several modules own: what one sums over, another looks up."""
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return {identity for identity, count in owners.items() if count > 1}


def _input_dimension(module: nn.Module) -> int | None:
    """Which dimension of its weight a layer sums over; None for other modules."""
    from torch import nn

    if isinstance(module, nn.Linear):
        return 1
    if type(module).__name__ == "Conv1D":  # of transformers, for GPT-2
        return 0
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and module.groups == 1:
        return 1
    return None


def _widened(dim: DimMap, *, contracted: bool) -> bool:
    """Whether a dimension has a widened axis that is, or is not, summed over."""
    return any(
        digit.units.copies > 1 and digit.contracted == contracted for strip in dim.strips for digit in strip.digits
    )

"""Check a recipe against the layers of a model, without running it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from mupscale_cli.architecture.types import Recipe
from mupscale_cli.checkpoints.reading import Checkpoint
from mupscale_cli.plan import Plan, Request, make_plan
from mupscale_cli.plan.dims import DimMap

if TYPE_CHECKING:
    from torch import nn


def find_static_mistakes(checkpoint: Checkpoint, recipe: Recipe, user_model: str | None = None) -> Iterator[str]:
    """Yield a message for each rule that contradicts the kind of a model's layer.

    A layer sums over its inputs only. In the weight of a Linear layer, exactly the columns therefore carry `/` on
    every widened axis.

    Args:
        checkpoint: a small checkpoint.
        recipe: the recipe to check.
        user_model: `path/or/module.py:build` of a user-defined model. Default: the model of transformers.

    Raises:
        MupscaleError: the recipe does not describe the model, or the model cannot be built.
    """
    import torch

    from mupscale_cli.verification.activations import name_in
    from mupscale_cli.verification.models import build_reference_model
    from mupscale_cli.verification.user_models import build_user_model, load_user_module

    if user_model is None:
        model = build_reference_model(checkpoint, torch.float32)
    else:
        model = build_user_model(load_user_module(user_model)[1], checkpoint, torch.float32)
    factors = {axis: 1 if axis in recipe.fixed else 2 for axis in recipe.axis_names}
    plan = _loose_plan(recipe, checkpoint, factors)
    modules = dict(model.named_modules())
    shared = _shared(model)
    reported_rules = set()
    for tensor in plan.tensors:
        owner, _, kind = plan.parameter_name(tensor.source.name).rpartition(".")
        name = name_in(model, owner, modules)
        if name is None or kind != "weight" or tensor.rule in reported_rules:
            continue
        inputs = _input_dimension(modules[name])
        if inputs is None or id(modules[name].weight) in shared:
            continue
        for position, dim in enumerate(tensor.dims):
            is_wrong = _widened(dim, contracted=position != inputs)
            if is_wrong:
                reported_rules.add(tensor.rule)
                layer = type(modules[name]).__name__
                yield (
                    f"`{tensor.rule}`: {layer} sums over dimension {position}, which is widened without `/`: "
                    if position == inputs
                    else f"`{tensor.rule}`: {layer} does not sum over dimension {position}, which has a `/`: "
                ) + f"`{tensor.layout}`"


def _loose_plan(recipe: Recipe, checkpoint: Checkpoint, factors: Mapping[str, int]) -> Plan:
    """Plan all axes at once, ignoring links between axes and the widened config."""
    loose = replace(recipe, links=(), config=())
    return make_plan(loose, checkpoint.specs, checkpoint.config, Request(axes=factors), None, check_config=False)


def _shared(model: nn.Module) -> set[int]:
    """Return ids of parameters that several modules own: one may sum over a dimension that another indexes."""
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return {identity for identity, count in owners.items() if count > 1}


def _input_dimension(module: nn.Module) -> int | None:
    """Return the dimension of a layer's weight that it sums over; None for other modules."""
    from torch import nn

    if isinstance(module, nn.Linear):
        return 1
    if type(module).__name__ == "Conv1D":  # GPT-2's linear layer in transformers
        return 0
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and module.groups == 1:
        return 1
    return None


def _widened(dim: DimMap, *, contracted: bool) -> bool:
    """Return whether a dimension has a widened axis that is summed over (`contracted`) or is not."""
    return any(
        digit.units.copies > 1 and digit.contracted == contracted for strip in dim.strips for digit in strip.digits
    )

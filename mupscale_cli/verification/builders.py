"""Choosing how models and their inputs are made: by the library of the checkpoint, or by the user's functions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from mupscale_cli.checkpoints.reading import Checkpoint
from mupscale_cli.plan import Plan
from mupscale_cli.verification.inputs.batch import Inputs
from mupscale_cli.verification.inputs.libraries import reference_inputs
from mupscale_cli.verification.inputs.user import user_inputs
from mupscale_cli.verification.models import build_reference_model
from mupscale_cli.verification.options import VerifyOptions
from mupscale_cli.verification.placement import Placement
from mupscale_cli.verification.user_models import build_user_model, load_user_module, user_config


def choose_builders(
    options: VerifyOptions, plan: Plan, *, is_streamed: bool = False, fits: bool = False
) -> tuple[Callable[[Checkpoint, Placement], nn.Module], Callable[[nn.Module, Checkpoint], Inputs]]:
    """Return a function that loads a model and one that makes its inputs, for a library's or a user-defined model.

    Args:
        options: the user-defined model, if any, and the seed of the inputs.
        plan: plan of the widening.
        is_streamed: whether weights may stay in their file; see `build_reference_model`.
        fits: whether it is known that the class has the checkpoints' sizes.
    """
    generator = torch.Generator().manual_seed(options.seed)
    if options.model is None:

        def load(checkpoint: Checkpoint, placement: Placement) -> nn.Module:
            names = plan.recipe.is_optional, plan.wrapping.plain
            return build_reference_model(
                checkpoint, placement.dtype, placement.device, *names, is_streamed=is_streamed, fits=fits
            )

        return load, lambda model, checkpoint: reference_inputs(model, generator, checkpoint.library)
    module, build = load_user_module(options.model)
    return (
        lambda checkpoint, placement: build_user_model(build, checkpoint, placement.dtype, plan.wrapping.plain).to(
            placement.device
        ),
        lambda model, checkpoint: user_inputs(module, user_config(checkpoint), plan, generator, model),
    )

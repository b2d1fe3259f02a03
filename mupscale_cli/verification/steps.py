"""Optimizer steps on two checkpoints, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mupscale_cli.checkpoints.reading import Checkpoint
from mupscale_cli.engine.memory import training_bytes
from mupscale_cli.errors import VerifyError
from mupscale_cli.optimizers.tree import OptimizerTree
from mupscale_cli.plan import Plan
from mupscale_cli.text import listed
from mupscale_cli.verification.comparing import reference
from mupscale_cli.verification.inputs import Inputs
from mupscale_cli.verification.models import output_tensor
from mupscale_cli.verification.options import VerifyOptions
from mupscale_cli.verification.placement import Placement, check_memory, one_device
from mupscale_cli.verification.result import CannotVerify, TrainingVerification
from mupscale_cli.verification.training import batch_loss, verify_training
from mupscale_cli.verification.weights import unperturbed, without_noise


def train_checkpoints(
    narrow: Checkpoint,
    wide: Checkpoint,
    plan: Plan,
    options: VerifyOptions,
    state: OptimizerTree | None = None,
    wide_state: OptimizerTree | None = None,
) -> TrainingVerification:
    """Take optimizer steps on two checkpoints, in float64 and side by side, and compare them.

    A perturbed model is trained without its noise, since copies that differ do not train alike.

    Args:
        narrow: the source.
        wide: what it was widened to.
        plan: how.
        options: device, own model, seed, number of steps.
        state: the narrow optimizer's, None for a fresh start of AdamW.
        wide_state: the carried one.

    Raises:
        CannotVerify: it is not possible here.
        VerifyError: a model cannot be built or trained.
    """
    if not plan.trains_alike:
        raise CannotVerify(
            f"a model that `{plan.method.name}` made does not train as the narrow one did"
            + (
                ""
                if not plan.method.is_copying
                else ": units were drawn unequally often along "
                + listed(axis.name for axis in plan.axes if axis.uneven and axis.factor > 1)
            )
            + "; leave `--steps` away"
        )
    device = one_device(options.device)
    check_memory(training_bytes(sum(plan.num_parameters)), "float64 with gradients and optimizer state", device)
    load, _ = reference(options, plan)
    plain = unperturbed(narrow, plan, wide.path.parent) if plan.perturbation else nullcontext(wide)
    with plain as checkpoint:
        place_at = Placement(device)
        before, after = (load(each, torch.float64, place_at).requires_grad_() for each in (narrow, checkpoint))

    def inputs(step: int) -> Inputs:
        _, make = reference(replace(options, seed=options.seed + step), plan)
        return make(before, narrow).to(device, torch.float64)

    loss = batch_loss(inputs, _logits, options.seed)
    found = verify_training(before, after, without_noise(plan), loss, options.steps, state=state, wide_state=wide_state)
    return replace(found, without_noise=plan.perturbation is not None)


def _logits(output: Any) -> Tensor:
    """What a loss is made of; hidden states are not it, since the wide model has more of them."""
    if isinstance(output, Mapping) and not any("logits" in name for name in output):
        raise VerifyError(f"the model has no head to train: it returns {', '.join(output)}")
    return output_tensor(output)

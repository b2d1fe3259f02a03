"""Training two checkpoints side by side for some optimizer steps."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mupscale_cli.checkpoints.reading import Checkpoint
from mupscale_cli.engine.events import SILENT, Events
from mupscale_cli.engine.memory import training_bytes
from mupscale_cli.errors import VerifyError
from mupscale_cli.optimizers.tree import OptimizerTree
from mupscale_cli.plan import Plan
from mupscale_cli.text import bytes_text, listed
from mupscale_cli.verification.builders import choose_builders
from mupscale_cli.verification.inputs.batch import Inputs
from mupscale_cli.verification.options import VerifyOptions
from mupscale_cli.verification.outputs import output_tensor
from mupscale_cli.verification.placement import Placement, check_memory, choose_device
from mupscale_cli.verification.result import CannotVerify, TrainingVerification
from mupscale_cli.verification.training import batch_loss, verify_training
from mupscale_cli.verification.weights import unperturbed_checkpoint

# What heads of transformers and diffusers return that they do not call logits.
_PREDICTIONS = ("sample", "embeddings", "spectrogram", "predicted_depth", "reconstruction")


def train_checkpoints(
    narrow: Checkpoint,
    wide: Checkpoint,
    plan: Plan,
    options: VerifyOptions,
    state: OptimizerTree | None = None,
    wide_state: OptimizerTree | None = None,
    events: Events = SILENT,
) -> TrainingVerification:
    """Train a checkpoint and its widening for some optimizer steps in float64, and compare the steps.

    A model is trained without its noise, since copies that differ train differently, and without the initial weights of
    fresh units, which the narrow model cannot learn from.

    Args:
        narrow: the source.
        wide: its widening.
        plan: plan of the widening.
        options: device, user-defined model, seed and number of steps.
        state: state of the narrow optimizer. Default: AdamW without a state.
        wide_state: the carried state.
        events: receive the cost, before it arises, and the progress.

    Raises:
        CannotVerify: the method does not keep training dynamics, or there is not enough memory.
        VerifyError: a model cannot be built or trained.
    """
    if not plan.trains_alike:
        uneven = [axis.name for axis in plan.axes if axis.uneven and axis.factor > 1] if plan.method.is_copying else []
        reason = f", because it copied some units of {listed(uneven)} more often than others" if uneven else ""
        for axis, why in plan.training_differences.items():
            reason = f": along `{axis}`, {why}"
        raise CannotVerify(
            f"a model widened by `{plan.method.name}` does not train like its source{reason}; omit `--steps`"
        )
    device = choose_device(options.device)
    needed, kept = training_bytes(*plan.num_parameters), "float64 with gradients and optimizer state"
    events.note(f"training both models, one after the other, takes about {bytes_text(int(needed))} in {kept}")
    check_memory(needed, kept, device)
    load_model, _ = choose_builders(options, plan)
    batches: dict[int, Inputs] = {}

    def inputs(model: nn.Module, step: int) -> Inputs:
        """Return the inputs of a step, made with the narrow model, which asks for them first."""
        if step not in batches:
            _, make_inputs = choose_builders(replace(options, seed=options.seed + step), plan)
            batches[step] = make_inputs(model, narrow).to(device, torch.float64)
        return batches[step]

    to_train = unperturbed_checkpoint(narrow, plan, wide.path.parent) if plan.additions else nullcontext(wide)
    with to_train as checkpoint:
        training = verify_training(
            lambda: load_model(narrow, Placement(torch.float64, device)),
            lambda: load_model(checkpoint, Placement(torch.float64, device)),
            plan,
            batch_loss(inputs, _logits, options.seed),
            options.steps,
            state=state,
            wide_state=wide_state,
            events=events,
        )
    return replace(training, removed=plan.additions)


def _logits(output: Any) -> Tensor:
    """Return what a head predicts, to compute a loss from. Hidden states depend on the width."""
    if isinstance(output, Mapping) and not any("logits" in key or key in _PREDICTIONS for key in output):
        raise VerifyError(f"the model has no head to train: it returns {', '.join(output)}")
    return output_tensor(output)

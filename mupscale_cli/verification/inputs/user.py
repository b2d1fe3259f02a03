"""Random inputs for user-defined models."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import nn

from mupscale_cli.errors import VerifyError
from mupscale_cli.plan import Plan
from mupscale_cli.verification.inputs.batch import BATCH, LENGTH, Inputs, random_tokens
from mupscale_cli.verification.inputs.images import IMAGE
from mupscale_cli.verification.inputs.layers import first_layer


def user_inputs(
    module: ModuleType,
    config: Mapping[str, Any],
    plan: Plan | None,
    generator: torch.Generator,
    model: nn.Module | None = None,
) -> Inputs:
    """Make inputs for a user-defined model: call its module's `inputs(config, generator)`, or infer them.

    Without that function, the first layer decides: tokens for an embedding, else random numbers.

    Args:
        module: module of the user's build function.
        config: the config that was passed to the build function.
        plan: plan of a widening; None if there is none yet.
        generator: source of the random numbers.
        model: the model that was built.

    Raises:
        VerifyError: the user's function fails, or the inputs cannot be inferred from the first layer.
    """
    make_inputs = getattr(module, "inputs", None)
    if callable(make_inputs):
        try:
            values = make_inputs(config, generator)
        except Exception as error:  # the user's own code may raise anything
            raise VerifyError(f"`inputs` of `--model` failed: {error!r}") from error
        if isinstance(values, Mapping):
            return Inputs((), dict(values), "inputs of the user's module")
        return Inputs(values if isinstance(values, tuple) else (values,), {}, "inputs of the user's module")
    embedding = first_layer(model)
    vocab_size = embedding.num_embeddings if isinstance(embedding, nn.Embedding) else config.get("vocab_size")
    if vocab_size is not None:
        tokens = random_tokens(vocab_size, LENGTH, generator)
        return Inputs((tokens,), {}, f"{BATCH} sequences of {LENGTH} random tokens")
    shape = _first_weight_shape(plan, model)
    if shape is None:
        raise VerifyError(
            "cannot infer the inputs of your model from its first layer",
            hint="define `inputs(config, generator)` next to the build function",
        )
    size = (BATCH, shape[1]) if len(shape) == 2 else (BATCH, shape[1], IMAGE, IMAGE)
    values = torch.randn(size, generator=generator, dtype=torch.float64)
    return Inputs((values,), {}, f"random numbers of shape {tuple(size)}")


def _first_weight_shape(plan: Plan | None, model: nn.Module | None) -> tuple[int, ...] | None:
    """Return the shape of the weight that reads the model's input; in a plan, the first with unwidened columns."""
    if plan is not None:
        weights = (tensor for tensor in plan.tensors if len(tensor.source.shape) in (2, 4))
        return next((t.source.shape for t in weights if t.dims[1].size == t.dims[1].wide_size), None)
    parameters = model.parameters() if model is not None else ()
    return next((tuple(p.shape) for p in parameters if p.dim() in (2, 4)), None)

"""Random inputs for the models of libraries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mupscale_cli.checkpoints.libraries import TRANSFORMERS, Library
from mupscale_cli.verification.inputs.batch import BATCH, LENGTH, Inputs, random_tokens
from mupscale_cli.verification.inputs.denoising import denoising_arguments
from mupscale_cli.verification.inputs.images import height_and_width, random_images
from mupscale_cli.verification.inputs.transformers import transformers_inputs
from mupscale_cli.verification.result import CannotVerify


def reference_inputs(model: Any, generator: torch.Generator, library: Library = TRANSFORMERS) -> Inputs:
    """Make inputs for a model of a library.

    Raises:
        CannotVerify: the model takes another kind of input.
    """
    return _LIBRARIES.get(library.name, _decoder_inputs)(model, generator)


def _timm_inputs(model: Any, generator: torch.Generator) -> Inputs:
    channels, height, width = model.pretrained_cfg["input_size"]
    images, description = random_images((channels, *_image_size(model, (height, width))), generator)
    return Inputs((images,), {}, description)


def _open_clip_inputs(model: Any, generator: torch.Generator) -> Inputs:
    images, description = random_images((3, *height_and_width(model.visual.image_size)), generator)
    tokens = random_tokens(model.vocab_size, model.context_length, generator)
    return Inputs((images, tokens), {}, f"{description}, each with {model.context_length} random tokens")


def _diffusers_inputs(model: Any, generator: torch.Generator) -> Inputs:
    arguments = denoising_arguments(model, generator, BATCH, LENGTH)
    shape = "x".join(map(str, next(iter(arguments.values())).shape[1:]))
    return Inputs((), arguments, f"{BATCH} random samples of {shape} at random time steps")


def _decoder_inputs(model: Any, generator: torch.Generator) -> Inputs:
    """Make tokens for a trainer's own model, which reads them by its first embedding."""
    embedding = next((module for module in model.modules() if hasattr(module, "num_embeddings")), None)
    if embedding is None:
        raise CannotVerify("the model has no embedding; give your own model with `--model module.py:build`")
    tokens = random_tokens(embedding.num_embeddings, LENGTH, generator)
    return Inputs((tokens,), {}, f"{BATCH} sequences of {LENGTH} random tokens")


def _image_size(model: Any, default: tuple[int, int]) -> tuple[int, int]:
    """Return the height and width of the images that a model's first layer takes."""
    return height_and_width(getattr(getattr(model, "patch_embed", None), "img_size", None) or default)


_LIBRARIES: dict[str, Callable[[Any, torch.Generator], Inputs]] = {
    "transformers": transformers_inputs,
    "timm": _timm_inputs,
    "open_clip": _open_clip_inputs,
    "diffusers": _diffusers_inputs,
}

"""Random inputs for a model, by what it takes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from mupscale_cli.errors import VerifyError
from mupscale_cli.plan import Plan
from mupscale_cli.verification.result import CannotVerify

BATCH = 2
LENGTH = 16
_IMAGE = 64


@dataclass(frozen=True)
class Inputs:
    """Arguments for a model's forward, and words for them."""

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    about: str

    def to(self, device: torch.device, dtype: torch.dtype) -> Inputs:
        """The same on a device; floating-point tensors in the models' type."""

        def moved(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(device, dtype) if value.is_floating_point() else value.to(device)
            return value

        return Inputs(
            tuple(map(moved, self.arguments)), {key: moved(v) for key, v in self.keywords.items()}, self.about
        )


def reference_inputs(model: Any, generator: torch.Generator) -> Inputs:
    """Inputs for a transformers model: tokens or images, by its `main_input_name`.

    Raises:
        CannotVerify: it takes something else.
    """
    config: Any = model.config
    name = getattr(model, "main_input_name", "input_ids")
    if name not in _KINDS:
        raise CannotVerify(
            f"it takes `{name}`, for which there are no random inputs yet; give your own model with `--model`"
        )
    values, about = _KINDS[name](config, generator)
    keywords = {name: values}
    if getattr(config, "is_encoder_decoder", False):
        keywords["decoder_input_ids"] = _tokens(config, generator)[0]
    if name == "input_ids" and getattr(config, "vision_config", None) is not None:
        keywords |= _pictures(model, config, generator)
        keywords[name] = _with_places(model, config, keywords)
        if "mm_token_type_ids" in inspect.signature(model.forward).parameters:
            keywords["mm_token_type_ids"] = torch.eq(keywords[name], image_token(config) or 0).long()
        about += " with images"
    return Inputs((), keywords, about)


def _pictures(model: Any, config: Any, generator: torch.Generator) -> dict[str, Tensor]:
    """One image for each text: pixels, or for models that take any resolution their patches in a row."""
    vision = config.vision_config
    if not hasattr(vision, "temporal_patch_size"):
        return {"pixel_values": _images(vision, generator)[0].to(model.dtype)}
    side = 2 * vision.spatial_merge_size
    channels = getattr(vision, "in_channels", None) or vision.in_chans
    patch = channels * vision.temporal_patch_size * vision.patch_size**2
    patches = torch.randn(BATCH * side * side, patch, generator=generator, dtype=torch.float64)
    return {"pixel_values": patches.to(model.dtype), "image_grid_thw": torch.tensor([[1, side, side]] * BATCH)}


def _with_places(model: Any, config: Any, keywords: Mapping[str, Tensor]) -> Tensor:
    """The tokens with as many image tokens in front of each text as its image has features."""
    tokens = keywords["input_ids"]
    place = image_token(config)
    if place is None:  # as in models that compare texts with images
        return tokens
    device = next(model.parameters()).device
    images = {key: value.to(device) for key, value in keywords.items() if key != "input_ids"}
    features = model.get_image_features(**images)
    features = getattr(features, "pooler_output", features)
    features = torch.cat(tuple(features)) if isinstance(features, (list, tuple)) else features
    count = features.numel() // features.shape[-1] // BATCH
    return torch.cat([torch.full((BATCH, count), place), tokens], dim=1)


def image_token(config: Any) -> int | None:
    """The token that stands for a feature of an image, None where there is none."""
    places = (getattr(config, name, None) for name in ("image_token_id", "image_token_index"))
    return next((place for place in places if isinstance(place, int)), None)


def _images(config: Any, generator: torch.Generator) -> tuple[Tensor, str]:
    size = getattr(config, "image_size", None) or _IMAGE
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    pixels = torch.randn(BATCH, config.num_channels, height, width, generator=generator, dtype=torch.float64)
    return pixels, f"{BATCH} random images of {height}x{width}"


def _tokens(config: Any, generator: torch.Generator) -> tuple[Tensor, str]:
    """Tokens; for encoder-decoders with one end token each, at the end, where their classifiers look for it."""
    text = config.get_text_config()
    tokens = random_tokens(text.vocab_size, LENGTH, generator)
    tokens[tokens == image_token(config)] = 0
    end = getattr(text, "eos_token_id", None)
    if getattr(config, "is_encoder_decoder", False) and isinstance(end, int) and 0 <= end < text.vocab_size:
        tokens[tokens == end] = (end + 1) % text.vocab_size
        tokens[:, -1] = end
    return tokens, f"{BATCH} sequences of {LENGTH} random tokens"


def _spectrograms(config: Any, generator: torch.Generator) -> tuple[Tensor, str]:
    shape = (BATCH, config.num_mel_bins, 2 * config.max_source_positions)  # the encoder halves their length
    return torch.randn(shape, generator=generator, dtype=torch.float64), f"{BATCH} random spectrograms"


_KINDS = {"input_ids": _tokens, "pixel_values": _images, "input_features": _spectrograms}


def random_tokens(vocab_size: int, length: int, generator: torch.Generator) -> Tensor:
    """A batch of token ids."""
    return torch.randint(vocab_size, (BATCH, length), generator=generator)


def user_inputs(
    module: ModuleType,
    config: Mapping[str, Any],
    plan: Plan | None,
    generator: torch.Generator,
    model: nn.Module | None = None,
) -> Inputs:
    """Inputs for a user's model: from its module's `inputs(config, generator)`, else by its first layer.

    Args:
        module: with the user's build function.
        config: what that was given.
        plan: of a widening, None where there is none yet.
        generator: of the random numbers.
        model: what was built.

    Raises:
        VerifyError: the first layer does not tell.
    """
    make = getattr(module, "inputs", None)
    if callable(make):
        made = make(config, generator)
        if isinstance(made, Mapping):
            return Inputs((), dict(made), "inputs of the user's module")
        return Inputs(made if isinstance(made, tuple) else (made,), {}, "inputs of the user's module")
    embedding = _first_layer(model)
    vocab_size = embedding.num_embeddings if isinstance(embedding, nn.Embedding) else config.get("vocab_size")
    if vocab_size is not None:
        tokens = random_tokens(vocab_size, LENGTH, generator)
        return Inputs((tokens,), {}, f"{BATCH} sequences of {LENGTH} random tokens")
    shape = _first_shape(plan, model)
    if shape is None:
        raise VerifyError(
            "the first weight of your model does not tell what it takes",
            hint="define `inputs(config, generator)` beside the build function",
        )
    size = (BATCH, shape[1]) if len(shape) == 2 else (BATCH, shape[1], _IMAGE, _IMAGE)
    values = torch.randn(size, generator=generator, dtype=torch.float64)
    return Inputs((values,), {}, f"random numbers of shape {tuple(size)}")


def _first_layer(model: nn.Module | None) -> nn.Module | None:
    """The first module that has parameters of its own."""
    modules = model.modules() if model is not None else ()
    return next((module for module in modules if next(module.parameters(recurse=False), None) is not None), None)


def _first_shape(plan: Plan | None, model: nn.Module | None) -> tuple[int, ...] | None:
    """The shape of the first weight, whose columns are what the model takes: the first that are not widened."""
    if plan is not None:
        weights = (tensor for tensor in plan.tensors if len(tensor.source.shape) in (2, 4))
        return next((t.source.shape for t in weights if t.dims[1].size == t.dims[1].wide_size), None)
    parameters = model.parameters() if model is not None else ()
    return next((tuple(p.shape) for p in parameters if p.dim() in (2, 4)), None)

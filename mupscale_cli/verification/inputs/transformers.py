"""Random inputs for the models of transformers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mupscale_cli.verification.inputs.batch import BATCH, Inputs, unknown_kind
from mupscale_cli.verification.inputs.images import config_images
from mupscale_cli.verification.inputs.layers import reads_rows
from mupscale_cli.verification.inputs.layout import layout_inputs
from mupscale_cli.verification.inputs.multimodal import beside_images, beside_sounds, token_types
from mupscale_cli.verification.inputs.patches import flattened_patches, images_as_patches, patches_on_grids
from mupscale_cli.verification.inputs.placeholders import features_of
from mupscale_cli.verification.inputs.series import beside_series, series
from mupscale_cli.verification.inputs.sounds import sound_config, sounds_to_continue, spectrograms, waveforms
from mupscale_cli.verification.inputs.tokens import config_tokens, decoder_tokens, for_head
from mupscale_cli.verification.result import CannotVerify


def transformers_inputs(model: Any, generator: torch.Generator) -> Inputs:
    """Make inputs for a transformers model: tokens, images or sounds, according to its `main_input_name`.

    Raises:
        CannotVerify: the model takes another kind of input.
    """
    config: Any = getattr(model.config, "vlm_config", model.config)  # of the model that one for retrieval consists of
    reads = inspect.signature(model.forward).parameters
    grid = next((each for each in ("grid_thw", "image_grid_thw") if each in reads and "input_ids" not in reads), None)
    if grid is not None:
        return _encoder_inputs(model, reads, grid, generator)
    name = _input_name(model, config, reads)
    vision = getattr(config, "vision_config", None) or config  # a class may read images alone of a model that has texts
    if name == "pixel_values" and (patches := images_as_patches(vision, reads, model.dtype, generator)):
        return Inputs((), patches, f"{BATCH} random images as patches")
    if name not in _KINDS:
        raise unknown_kind(name)
    values, description = _KINDS[name](model, config, generator)
    if name == "input_ids":
        values = for_head(model, values)
    keywords: dict[str, Any] = {name: values}
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in reads:
        keywords["decoder_input_ids"] = decoder_tokens(config, generator)
    keywords |= sounds_to_continue(config, reads, generator)
    keywords |= beside_series(config, reads, generator)
    if name == "input_ids":
        keywords |= _beside_tokens(model, config, reads, values, generator)
    if name == "input_ids" and getattr(config, "vision_config", None) is not None:
        if not {"pixel_values", "flattened_patches"} & reads.keys():
            return Inputs((), keywords, f"{description} without images")  # this class takes them in a form of its own
        keywords |= beside_images(model, config, keywords, generator)
        description = f"{description} with images"
    if name == "input_ids" and sound_config(config) is not None and features_of(model, "audio") is not None:
        try:
            keywords |= beside_sounds(model, config, {"input_ids": keywords["input_ids"]}, generator)
            description = f"{description} and sounds" if "pixel_values" in keywords else f"{description} with sounds"
        except CannotVerify:
            if "pixel_values" not in keywords:  # images and texts are most of the other models
                raise
    if "pixel_values" in keywords and "input_ids" in keywords:
        keywords |= token_types(reads, config, keywords["input_ids"])
    keywords |= _mask(reads, keywords)
    return Inputs((), keywords, description)


def _input_name(model: Any, config: Any, reads: Mapping[str, Any]) -> str:
    """Return the argument that a model's inputs have above all."""
    name: str = getattr(model, "main_input_name", "input_ids")
    if name == "inputs":  # what its encoder reads
        return str(model.encoder.main_input_name)
    if name == "pixel_values" and "input_ids" in reads and getattr(config, "text_config", None) is not None:
        return "input_ids"  # BLIP names its images first
    if name not in reads:  # such as that of the composite whose part this is
        name = next((each for each in reads if each in _KINDS), name)
    return name


def _encoder_inputs(model: Any, reads: Mapping[str, Any], grid: str, generator: torch.Generator) -> Inputs:
    """Make images for an image encoder alone that takes any resolution; its first argument is the patches."""
    patches, grids, merges = patches_on_grids(model.config, model.dtype, generator)
    if reads_rows(model, model.config):
        patches = patches.flatten(1)
    values = {next(iter(reads)): patches, grid: grids, "merge_sizes": merges}
    return Inputs((), {name: values[name] for name in values if name in reads}, f"{BATCH} random images as patches")


def _mask(reads: Mapping[str, Any], keywords: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Make a mask that hides no token, for classes that fail without one."""
    return {"attention_mask": torch.ones_like(keywords["input_ids"])} if _MASKED & reads.keys() else {}


def _beside_tokens(
    model: Any, config: Any, reads: Mapping[str, Any], tokens: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """Make what a model reads beside token ids, except images and sounds of a part of its own."""
    inputs = layout_inputs(config, reads, tokens.shape, generator)
    if "global_attention_mask" in reads:  # Longformer and LED
        inputs["global_attention_mask"] = torch.zeros_like(tokens).index_fill(-1, torch.tensor(0), 1)
    is_seen = bool({"bbox", "pixel_mask"} & reads.keys())  # the picture of a page, or one that ViLT pads
    if "pixel_values" in reads and getattr(config, "visual_embed", is_seen):
        count = config.num_images if type(model).__name__ == "ViltForImagesAndTextClassification" else 0
        pixels = [config_images(config, generator)[0] for _ in range(max(count, 1))]
        inputs["pixel_values"] = torch.stack(pixels, dim=1) if count > 0 else pixels[0]  # its other heads read one each
    return inputs


# Arguments of classes that compute with the mask itself: BROS's Spade heads, VisualBERT's, BLIP-2's for retrieval.
_MASKED = {"bbox_first_token_mask", "visual_embeds", "use_image_text_matching_head"}

_KINDS: dict[str, Callable[[nn.Module, Any, torch.Generator], tuple[Tensor, str]]] = {
    "input_ids": lambda _, config, generator: config_tokens(config, generator),
    "pixel_values": lambda _, config, generator: config_images(config, generator),
    "pixel_values_videos": lambda _, config, generator: config_images(config, generator),
    "input_features": spectrograms,
    "input_values": waveforms,
    "flattened_patches": flattened_patches,
    "past_values": series,
}

"""Random images and sounds of texts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from mupscale_cli.verification.inputs.batch import BATCH, LENGTH, random_tokens
from mupscale_cli.verification.inputs.images import config_images
from mupscale_cli.verification.inputs.layers import reads_rows
from mupscale_cli.verification.inputs.patches import flattened_patches, images_as_patches, patches_on_grids
from mupscale_cli.verification.inputs.placeholders import (
    audio_token,
    features_of,
    image_token,
    num_features,
    token_id,
    visual_kind,
    with_placeholders,
)
from mupscale_cli.verification.inputs.sounds import hears_while_it_writes, sound_config, spectrograms, waveforms


def beside_images(
    model: Any, config: Any, keywords: Mapping[str, Tensor], generator: torch.Generator
) -> dict[str, Tensor]:
    """Make the images of texts, and put placeholders for them in front of these."""
    reads = inspect.signature(model.forward).parameters
    made = _image_inputs(model, config, generator)
    if "qformer_input_ids" in reads:  # the instruction, which the queries read as well
        made["qformer_input_ids"] = random_tokens(config.qformer_config.vocab_size, LENGTH, generator)
    kind = visual_kind(config)
    placeholder, encode = token_id(config, f"{kind}_token"), features_of(model, kind)
    made["input_ids"] = with_placeholders(model, {**keywords, **made}, placeholder, encode)
    if hasattr(model.config, "vlm_config") and "image_grid_thw" in made:  # ColQwen2 pads the patches of each image
        made["pixel_values"] = made["pixel_values"].view(BATCH, -1, made["pixel_values"].shape[-1])
    return made


def token_types(reads: Mapping[str, Any], config: Any, tokens: Tensor) -> dict[str, Tensor]:
    """Tell image placeholders from other tokens, for models that read this."""
    types = torch.eq(tokens, image_token(config) or 0).long()
    return dict.fromkeys(sorted({"mm_token_type_ids", "moe_mm_token_type_ids"} & reads.keys()), types)


def beside_sounds(
    model: Any, config: Any, keywords: Mapping[str, Tensor], generator: torch.Generator
) -> dict[str, Any]:
    """Make the sounds of texts, and put placeholders for them in front of these."""
    made = _sound_inputs(model, config, generator)
    encode = features_of(model, "audio")
    if hears_while_it_writes(config):
        count = num_features(model, {**keywords, **made}, encode)
        return {**made, "input_ids": keywords["input_ids"][:, :count]}
    return {**made, "input_ids": with_placeholders(model, {**keywords, **made}, audio_token(config), encode)}


def _image_inputs(model: Any, config: Any, generator: torch.Generator) -> dict[str, Tensor]:
    """Make one image per text: pixels, or a sequence of patches for models that take any resolution."""
    vision = config.vision_config
    reads = inspect.signature(model.forward).parameters
    if "image_grid_thw" in reads:
        patches, grids, merges = patches_on_grids(vision, model.dtype, generator)
        if reads_rows(model, vision):
            patches = patches.flatten(1)
        values = {"pixel_values": patches, "image_grid_thw": grids, "image_merge_sizes": merges}
        return {name: values[name] for name in values if name in reads}
    parameters = inspect.signature(features_of(model, "image") or model.forward).parameters
    if made := images_as_patches(vision, {*reads, *parameters}, model.dtype, generator):
        return made
    if "image_embeds_position_mask" in reads:
        return _in_place_of_tokens(model, config, reads, generator)
    pixels = config_images(vision, generator)[0].to(model.dtype)
    if visual_kind(config) == "video":
        return {"pixel_values": torch.stack([pixels, pixels.flip(-1)], dim=1)}
    if "aspect_ratio_ids" in parameters:  # one tile of as many as an image may have
        return _tiled(pixels, vision.max_num_tiles)
    if "tile_fine_mask" in reads:  # tiles, and which of them are not padding
        return {"pixel_values": pixels[:, None], "pixel_attention_mask": torch.ones(BATCH, 1, dtype=torch.bool)}
    if "pixel_attention_mask" in parameters or hasattr(config, "vision_use_cls_token"):  # several images per text
        return {"pixel_values": pixels[:, None]}
    if "high_res_pixel_values" in parameters:  # each image in two sizes
        large = config_images(config.high_res_vision_config, generator)[0]
        return {"pixel_values": pixels, "high_res_pixel_values": large.to(model.dtype)}
    if "image_sizes" not in parameters:
        return {"pixel_values": pixels}
    sizes = torch.tensor([pixels.shape[-2:]] * BATCH)
    if hasattr(config, "image_grid_pinpoints"):  # each image and its tiles
        pixels = pixels[:, None].repeat(1, 1 + _tiles(config, vision, sizes[0].tolist()), 1, 1, 1)
    return {"pixel_values": pixels, "image_sizes": sizes}


def _in_place_of_tokens(
    model: Any, config: Any, reads: Mapping[str, Any], generator: torch.Generator
) -> dict[str, Tensor]:
    """Make images whose features take the place of the first tokens."""
    as_patches = "flattened_patches" in reads
    images, _ = flattened_patches(model, config, generator) if as_patches else config_images(config, generator)
    places = torch.arange(LENGTH).lt(config.latent_query_num).expand(BATCH, -1)
    name = "flattened_patches" if as_patches else "pixel_values"
    return {name: images.to(model.dtype), "image_embeds_position_mask": places}


def _tiled(pixels: Tensor, num_tiles: int) -> dict[str, Tensor]:
    """Make one image per text, of one tile, for models whose blocks attend to images."""
    mask = (torch.arange(num_tiles) == 0).long().expand(BATCH, 1, num_tiles)
    return {
        "pixel_values": pixels[:, None, None].repeat(1, 1, num_tiles, 1, 1, 1),
        "aspect_ratio_ids": torch.ones(BATCH, 1, dtype=torch.long),
        "aspect_ratio_mask": mask,
        "cross_attention_mask": mask[:, None].repeat(1, LENGTH, 1, 1),
    }


def _tiles(config: Any, vision: Any, size: list[int]) -> int:
    """Return into how many tiles LLaVA cuts an image of a height and width."""
    from transformers.image_processing_utils import select_best_resolution

    height, width = select_best_resolution(tuple(size), config.image_grid_pinpoints)
    tile = vision.image_size
    return int((height // tile) * (width // tile))


def _sound_inputs(model: Any, config: Any, generator: torch.Generator) -> dict[str, Tensor]:
    """Make one spectrogram or waveform per text, and the masks of its frames that the class takes."""
    owners = [owner for owner in (model, getattr(model, "model", None)) if owner is not None]
    parameters = _parameters(owner.forward for owner in owners)  # a head may pass all its arguments to its model
    if "audio_input_ids" in parameters:  # a level for each band of each frame
        sound = sound_config(config)
        shape = (BATCH, LENGTH, sound.n_mel_bins)
        return {"audio_input_ids": torch.randint(sound.mel_vocab_size, shape, generator=generator)}
    name = "input_features" if "input_features" in parameters else "input_values"
    make = spectrograms if name == "input_features" else waveforms
    sounds = make(model, sound_config(config), generator)[0].to(model.dtype)
    taken = _parameters(owner.get_audio_features for owner in owners if hasattr(owner, "get_audio_features"))
    masks = {"feature_attention_mask", "input_features_mask", "padding_mask"} & taken & parameters
    by_frames = name == "input_features" and sounds.shape[1] != sound_config(config).num_mel_bins
    mask = torch.ones(BATCH, sounds.shape[1 if by_frames else -1], dtype=torch.long)
    exact: dict[str, Any] = {"sample": False} if "sample" in parameters else {}  # without noise on the features
    return {name: sounds, **dict.fromkeys(sorted(masks), mask), **exact}


def _parameters(functions: Iterable[Callable[..., Any]]) -> set[str]:
    """Return the names of all arguments of some functions."""
    return {name for function in functions for name in inspect.signature(function).parameters}

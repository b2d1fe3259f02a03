"""Random images as patches."""

from __future__ import annotations

import math
from collections.abc import Callable, Container
from typing import Any

import torch
from torch import Tensor, nn

from mupscale_cli.verification.inputs.batch import BATCH, LENGTH

_CHANNELS = ("in_channels", "num_channels", "in_chans")  # config keys for the channels of images


def patches_on_grids(vision: Any, dtype: torch.dtype, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Make square images as one sequence of patches.

    Returns:
        The patches, the time, height and width of each image in patches, and how many patches are merged along a side.
    """
    merge = getattr(vision, "spatial_merge_size", None) or getattr(vision, "merge_size", None)
    merge = merge or getattr(vision, "merge_kernel_size", (1,))[0]
    side = 2 * merge
    channels = next((value for key in _CHANNELS if (value := getattr(vision, key, None))), 3)
    frames = getattr(vision, "temporal_patch_size", None) or getattr(vision, "patch_temporal", None)
    frames = frames or (1 if hasattr(vision, "max_image_size") else None)  # Hunyuan reads a patch as a row, too
    shape = (channels * frames * vision.patch_size**2,) if frames else (channels, vision.patch_size, vision.patch_size)
    patches = torch.randn(BATCH * side * side, *shape, generator=generator, dtype=torch.float64)
    return patches.to(dtype), torch.tensor([[1, side, side]] * BATCH), torch.full((BATCH,), merge)


def flattened_patches(_model: nn.Module, config: Any, generator: torch.Generator) -> tuple[Tensor, str]:
    """Make images as rows of patches, each behind the numbers of its row and column from 1."""
    vision = config.vision_config
    side = math.isqrt(LENGTH)
    places = 1 + torch.cartesian_prod(torch.arange(side), torch.arange(side)).double().expand(BATCH, -1, -1)
    size = (BATCH, side * side, vision.patch_embed_hidden_size)
    patches = torch.randn(size, generator=generator, dtype=torch.float64)
    return torch.cat([places, patches], dim=-1), f"{BATCH} random images of {side * side} patches"


def _pooled_patches(vision: Any, dtype: torch.dtype, generator: torch.Generator) -> dict[str, Tensor]:
    """Make square images as rows of patches; every feature pools a square of four patches."""
    side = math.isqrt(vision.num_position_embeddings)
    shape = (BATCH, side * side, vision.num_channels * vision.patch_size**2)
    places = torch.arange(side * side).view(side // 2, 2, side // 2, 2).transpose(1, 2).reshape(-1, 4)
    return {
        "pixel_values": torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype),
        "image_token_pooling": torch.cat([places + image * side * side for image in range(BATCH)]),
        "image_grids": torch.tensor([[side // 2, side // 2, 0, 0]] * BATCH),
    }


def _strip_of_patches(vision: Any, dtype: torch.dtype, generator: torch.Generator) -> dict[str, Tensor]:
    """Make square images as one strip of patches, wide enough for squares of squares of them."""
    side = 2 * vision.window_kernel_size[0] ** 2
    shape = (1, vision.num_channels, vision.patch_size, BATCH * side * side * vision.patch_size)
    pixels = torch.randn(shape, generator=generator, dtype=torch.float64)
    return {"pixel_values": pixels.to(dtype), "target_sizes": torch.full((BATCH, 2), side)}


def _placed_patches(vision: Any, dtype: torch.dtype, generator: torch.Generator) -> dict[str, Tensor]:
    """Make square images as patches with their columns and rows."""
    side = 2 * getattr(vision, "pooling_kernel_size", 1)
    size = 3 * (getattr(vision, "model_patch_size", None) or vision.patch_size) ** 2
    patches = torch.randn(BATCH, side * side, size, generator=generator, dtype=torch.float64)
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side)).flip(-1)
    places = places.repeat(BATCH, 1, 1)
    return {"pixel_values": patches.to(dtype), "image_position_ids": places, "pixel_position_ids": places}


def _blocks_of_pixels(vision: Any, dtype: torch.dtype, generator: torch.Generator) -> dict[str, Tensor]:
    """Make images of four patches each, as frames of pixels with their channels."""
    shape = (4 * BATCH, vision.temporal_patch_size, vision.patch_size, vision.patch_size, vision.num_channels)
    return {"pixel_values": torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)}


def _patches_of_grids(vision: Any, dtype: torch.dtype, generator: torch.Generator) -> dict[str, Tensor]:
    """Make square images as one sequence of patches as rows."""
    side = vision.image_size // vision.patch_size
    patches = torch.randn(BATCH * side * side, vision.patch_dim, generator=generator, dtype=torch.float64)
    return {"pixel_values": patches.to(dtype), "image_grid_hw": torch.full((BATCH, 2), side)}


def _rows_of_patches(vision: Any, dtype: torch.dtype, generator: torch.Generator) -> dict[str, Tensor]:
    """Make square images as rows of patches."""
    shape = (BATCH, vision.num_patches, vision.num_channels * vision.patch_size**2)
    return {
        "pixel_values": torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype),
        "pixel_attention_mask": torch.ones(shape[:2], dtype=torch.long),
        "spatial_shapes": torch.full((BATCH, 2), math.isqrt(vision.num_patches)),
    }


# How images are made as patches, by an argument of the model or of the function that makes features of them.
_PATCHES: dict[str, Callable[[Any, torch.dtype, torch.Generator], dict[str, Tensor]]] = {
    "image_token_pooling": _pooled_patches,  # patches, and which of them a feature pools
    "target_sizes": _strip_of_patches,  # the patches of all images in one strip
    "spatial_shapes": _rows_of_patches,  # patches side by side, of any aspect ratio
    "image_position_ids": _placed_patches,  # patches and their places
    "pixel_position_ids": _placed_patches,  # which the tower alone calls so
    "audio_input_ids": _blocks_of_pixels,  # Inkling's patches, with the channels last
    "image_grid_hw": _patches_of_grids,  # the patches of all images, and their grids
}


def images_as_patches(
    vision: Any, reads: Container[str], dtype: torch.dtype, generator: torch.Generator
) -> dict[str, Tensor]:
    """Make images as the patches that a model reads, by argument; nothing for a model that reads pixels.

    Args:
        vision: the config of the image encoder.
        reads: the arguments of the model, and of the function that makes features.
        dtype: the type of the patches.
        generator: source of the random numbers.
    """
    make = next((make for mark, make in _PATCHES.items() if mark in reads), None)
    made = {} if make is None else make(vision, dtype, generator)
    return {name: value for name, value in made.items() if name in reads}

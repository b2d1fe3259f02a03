"""Random images and videos as pixels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from mupscale_cli.verification.inputs.batch import BATCH

IMAGE = 64  # height and width where the model leaves them open


def config_images(config: Any, generator: torch.Generator) -> tuple[Tensor, str]:
    """Make images or videos of the size in a config, and describe them."""
    if hasattr(config, "architecture"):  # a tower of timm, whose config does not state its images
        from timm.models import get_pretrained_cfg_value

        pretrained: Any = get_pretrained_cfg_value(config.architecture, "input_size")
        size = (getattr(config, "model_args", None) or {}).get("img_size", pretrained[1:])
        return random_images((pretrained[0], *height_and_width(size)), generator)
    config = getattr(config, "encoder", None) or getattr(config, "vision_config", None) or config
    owners = (config, getattr(config, "backbone_config", None))
    sizes = (getattr(owner, key, None) for owner in owners for key in ("image_size", "input_size"))
    size = height_and_width(next(filter(None, sizes), IMAGE))
    frames = getattr(config, "num_frames", None) or getattr(config, "frames_per_clip", None)
    channels = getattr(config, "num_channels", 3)
    if frames is None:
        return random_images((channels, *size), generator)
    pixels = torch.randn(BATCH, frames, channels, *size, generator=generator, dtype=torch.float64)
    return pixels, f"{BATCH} random videos of {frames} frames"


def random_images(shape: tuple[int, int, int], generator: torch.Generator) -> tuple[Tensor, str]:
    """Make images of a shape (channels, height, width), and describe them."""
    pixels = torch.randn(BATCH, *shape, generator=generator, dtype=torch.float64)
    return pixels, f"{BATCH} random images of {shape[1]}x{shape[2]}"


def height_and_width(size: int | Iterable[int]) -> tuple[int, int]:
    """Return the height and width of images whose size may be one number."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width

"""Random arguments for the models of diffusers: latents or images, time steps, and what conditions them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_STEPS = 1000  # time steps of training
_CELLS = 4  # of a side of the smallest feature map, or patches of a side
_TEXT_KEYS = ("joint_attention_dim", "caption_channels", "cross_attention_dim")  # its size before any projection
_TIME_IDS = 6  # of Stable Diffusion XL: the image's size before and after cropping, and the corner of the crop


@dataclass(frozen=True)
class _Draw:
    """Draws arguments.

    Attributes:
        config: the model's config.
        generator: source of the random numbers.
        batch: number of samples.
        length: number of tokens, and of patches if the model takes them as a sequence.
    """

    config: Any
    generator: torch.Generator
    batch: int
    length: int

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(self.batch, *shape, generator=self.generator, dtype=torch.float64)

    def whole(self, limit: int, *shape: int) -> Tensor:
        return torch.randint(1, limit, (self.batch, *shape), generator=self.generator)

    def image(self) -> Tensor:
        levels = self.config.get("block_out_channels")
        side = _CELLS * (2 ** (len(levels) - 1) if levels else self.config["patch_size"])
        return self.normal(self.config["in_channels"], side, side)

    def patches(self) -> Tensor:
        return self.normal(self.length, self.config["in_channels"])

    def text(self) -> Tensor | None:
        size = next((size for key in _TEXT_KEYS if (size := self.config.get(key))), None)
        return None if size is None else self.normal(self.length, size if isinstance(size, int) else size[0])

    def vector(self, key: str) -> Tensor | None:
        return self.normal(self.config[key]) if self.config.get(key) else None

    def positions(self) -> Tensor:
        return torch.randint(self.length, (self.length, 3), generator=self.generator).double()

    def labels(self) -> Tensor | None:
        if self.config.get("class_embed_type") == "timestep":
            return self.whole(_STEPS)
        if self.config.get("class_embed_type") in ("projection", "simple_projection"):
            return self.vector("projection_class_embeddings_input_dim")
        count = self.config.get("num_class_embeds") or self.config.get("num_embeds_ada_norm")
        return self.whole(count) if count else None

    def conditions(self) -> dict[str, Tensor] | None:
        """Return a pooled text and the sizes of the image, as Stable Diffusion XL takes them."""
        if self.config.get("addition_embed_type") != "text_time":
            return None
        times = _TIME_IDS * self.config["addition_time_embed_dim"]
        pooled = self.normal(self.config["projection_class_embeddings_input_dim"] - times)
        return {"text_embeds": pooled, "time_ids": self.whole(_STEPS, _TIME_IDS)}


_ARGUMENTS: dict[str, Callable[[_Draw], Any]] = {
    "sample": _Draw.image,
    "hidden_states": _Draw.image,
    "timestep": lambda draw: draw.whole(_STEPS),
    "timestep_cond": lambda draw: draw.vector("time_cond_proj_dim"),
    "class_labels": _Draw.labels,
    "encoder_hidden_states": _Draw.text,
    "pooled_projections": lambda draw: draw.vector("pooled_projection_dim"),
    "added_cond_kwargs": _Draw.conditions,
}
_OF_PATCHES: dict[str, Callable[[_Draw], Any]] = {  # models that take patches and times from 0 to 1
    "hidden_states": _Draw.patches,
    "timestep": lambda draw: draw.normal().sigmoid(),
    "guidance": lambda draw: draw.normal().exp() if draw.config.get("guidance_embeds") else None,
    "img_ids": _Draw.positions,
    "txt_ids": _Draw.positions,
}


def denoising_arguments(model: Any, generator: torch.Generator, batch: int, length: int) -> dict[str, Any]:
    """Make the arguments of a forward pass that a model takes and its config has sizes for.

    Args:
        model: a model of diffusers.
        generator: source of the random numbers.
        batch: number of samples.
        length: number of tokens, and of patches if the model takes them as a sequence.
    """
    wanted = inspect.signature(model.forward).parameters
    draw = _Draw(model.config, generator, batch, length)
    makers = {**_ARGUMENTS, **(_OF_PATCHES if "img_ids" in wanted else {})}
    arguments = {name: make(draw) for name, make in makers.items() if name in wanted}
    if getattr(model, "use_additional_conditions", False):
        arguments["added_cond_kwargs"] = {"resolution": draw.normal(2), "aspect_ratio": draw.normal(1)}
    return {name: value for name, value in arguments.items() if value is not None}

"""Random inputs beside a text: places of its words on a page, their paths in markup, and features of images."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

import torch
from torch import Tensor

_REGIONS = 3  # of an image whose features a model reads


def layout_inputs(
    config: Any, reads: Container[str], shape: Sequence[int], generator: torch.Generator
) -> dict[str, Tensor]:
    """Make what a model reads beside token ids.

    Args:
        config: config of the model.
        reads: names of the arguments of its forward pass.
        shape: shape of the token ids, whose last dimension is the length of the text.
        generator: source of the random numbers.

    Returns:
        Arguments by name; none for a model that reads only a text.
    """
    inputs = {}
    if "bbox" in reads:
        # UDOP takes parts of the page, and makes numbers of them by itself.
        limit = None if hasattr(config, "relative_bias_args") else getattr(config, "max_2d_position_embeddings", None)
        inputs["bbox"] = _boxes(limit, shape, generator)
    for name, kind in (("xpath_tags_seq", "tag"), ("xpath_subs_seq", "subs")):
        if name in reads:
            limit = getattr(config, f"max_xpath_{kind}_unit_embeddings")
            inputs[name] = torch.randint(limit, (*shape, config.max_depth), generator=generator)
    if "visual_embeds" in reads and hasattr(config, "visual_embedding_dim"):
        size = (*shape[:-1], _REGIONS, config.visual_embedding_dim)
        inputs["visual_embeds"] = torch.randn(size, generator=generator, dtype=torch.float64)
        inputs["visual_attention_mask"] = torch.ones(size[:-1], dtype=torch.long)
    if "region_to_phrase_position" in reads:
        inputs["region_to_phrase_position"] = torch.randint(shape[-1], (*shape[:-1], _REGIONS), generator=generator)
    return inputs


def _boxes(limit: int | None, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Make a box for each token: its left, upper, right and lower edge, whole numbers if there is a limit."""
    corners = torch.rand((*shape, 2, 2), generator=generator, dtype=torch.float64)  # two corners of x and y
    boxes = corners.sort(dim=-2).values.flatten(-2)
    return boxes if limit is None else (limit * boxes).long()

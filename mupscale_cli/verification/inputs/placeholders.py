"""The tokens that hold a place in a text for the features of an image or a sound."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mupscale_cli.verification.failing import running_a_model
from mupscale_cli.verification.inputs.batch import BATCH


def image_token(config: Any) -> int | None:
    """Return the id of the placeholder token for an image feature; None if the config has none."""
    return token_id(config, "image_token")


def audio_token(config: Any) -> int | None:
    """Return the id of the placeholder token for a feature of a sound; None if the config has none."""
    return token_id(config, "audio_token")


def token_id(config: Any, name: str) -> int | None:
    """Return the id of a token that a config names, such as `video_token`; None if it has none."""
    ids = (getattr(config, f"{name}_{kind}", None) for kind in ("id", "index"))
    return next((value for value in ids if isinstance(value, int)), None)


def visual_kind(config: Any) -> str:
    """Return whether a model has placeholders for images or only for videos, as `image` or `video`."""
    return "video" if image_token(config) is None and token_id(config, "video_token") is not None else "image"


def with_placeholders(
    model: Any, keywords: Mapping[str, Tensor], placeholder: int | None, encode: Callable[..., Any] | None
) -> Tensor:
    """Prepend one placeholder per feature of its image or sound to each text."""
    tokens = keywords["input_ids"]
    if placeholder is None or encode is None:  # models such as CLIP take images and texts separately
        return tokens
    count = num_features(model, keywords, encode)
    return torch.cat([torch.full((BATCH, count), placeholder), tokens], dim=1)


def num_features(model: Any, keywords: Mapping[str, Tensor], encode: Callable[..., Any]) -> int:
    """Return how many features a model makes of one image or sound."""
    device = next(model.parameters()).device
    if "input_ids" in inspect.signature(encode).parameters:  # the places of the features; its encoder does without
        encode = getattr(model, model.base_model_prefix, model).audio_tower
    given = {key: value for key, value in keywords.items() if key != "input_ids"}
    with running_a_model():
        features = encode(**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in given.items()})
    pooled = getattr(features, "pooler_output", None)
    if pooled is None and (blocks := getattr(features, "deepstack_features", None)):
        pooled = blocks[0][1]  # features for several blocks, as many for each
    features = getattr(features, "last_hidden_state", features) if pooled is None else pooled
    features = torch.cat(tuple(features)) if isinstance(features, (list, tuple)) else features
    return int(features.numel() // features.shape[-1] // BATCH)


def features_of(model: Any, kind: str) -> Any:
    """Return the function that turns images or sounds into features, which some heads leave to their model, or None."""
    name = f"get_{kind}_features"
    owners = (model, getattr(model, "model", None), getattr(model, "vlm", None))
    return next((encode for owner in owners if (encode := getattr(owner, name, None)) is not None), None)

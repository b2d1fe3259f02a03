"""Random time series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mupscale_cli.verification.inputs.batch import BATCH


def series(_model: nn.Module, config: Any, generator: torch.Generator) -> tuple[Tensor, str]:
    """Make time series of the length and with the channels in a config, and describe them."""
    values = _random(_shape(config), generator)
    return values, f"{BATCH} random time series of {values.shape[1]} values"


def beside_series(config: Any, reads: Mapping[str, Any], generator: torch.Generator) -> dict[str, Any]:
    """Make what a model reads beside its series, by argument; nothing for others.

    Args:
        config: config of the model.
        reads: names of the arguments of its forward pass.
        generator: source of the random numbers.
    """
    beside: dict[str, Any] = {}
    categories = getattr(config, "freq_size", None)
    if categories is not None and "freq" in reads:  # how often TimesFM's series were measured
        beside["freq"] = torch.randint(categories, (BATCH,), generator=generator).tolist()
    if "past_time_features" in reads:
        beside |= _known_beside(config, reads, generator)
    return beside


def _shape(config: Any) -> tuple[int, ...]:
    """Return the shape of series: those of a model that reads values from before, its lags, are longer."""
    channels = getattr(config, "num_input_channels", None)
    if channels is None and getattr(config, "input_size", 1) > 1:
        channels = config.input_size
    before = max(getattr(config, "lags_sequence", ()), default=0)
    return (BATCH, config.context_length + before, *(() if channels is None else (channels,)))


def _known_beside(config: Any, reads: Mapping[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
    """Make the values to predict, and what is known of each time, past or future, and of each whole series."""
    shape = _shape(config)
    future = (BATCH, config.prediction_length, *shape[2:])
    times = config.num_time_features + config.num_dynamic_real_features
    made = {
        "past_time_features": _random((*shape[:2], times), generator),
        "past_observed_mask": torch.ones(shape, dtype=torch.float64),
        "future_values": _random(future, generator),
        "future_time_features": _random((*future[:2], times), generator),
    }
    if config.num_static_categorical_features:
        made["static_categorical_features"] = _categories(config.cardinality, generator)
    if config.num_static_real_features:
        made["static_real_features"] = _random((BATCH, config.num_static_real_features), generator)
    return {name: value for name, value in made.items() if name in reads}


def _categories(cardinality: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw a category of each kind for each series."""
    return torch.stack([torch.randint(count, (BATCH,), generator=generator) for count in cardinality], dim=-1)


def _random(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)

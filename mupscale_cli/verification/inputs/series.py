"""Random time series."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mupscale_cli.verification.inputs.batch import BATCH


def series(_model: nn.Module, config: Any, generator: torch.Generator) -> tuple[Tensor, str]:
    """Make time series of the length and with the channels in a config, and describe them."""
    channels = getattr(config, "num_input_channels", None)
    shape = (BATCH, config.context_length, *(() if channels is None else (channels,)))
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    return values, f"{BATCH} random time series of {config.context_length} values"


def beside_series(config: Any, reads: Mapping[str, Any], generator: torch.Generator) -> dict[str, list[int]]:
    """Draw the category of each series, if a model reads one: how often TimesFM's series were measured."""
    categories = getattr(config, "freq_size", None)
    if categories is None or "freq" not in reads:
        return {}
    return {"freq": torch.randint(categories, (BATCH,), generator=generator).tolist()}

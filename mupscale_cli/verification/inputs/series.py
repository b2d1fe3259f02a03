"""Random time series."""

from __future__ import annotations

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

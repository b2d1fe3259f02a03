"""What the first layers of a model read."""

from __future__ import annotations

from typing import Any

from torch import nn


def first_layer(model: nn.Module | None) -> nn.Module | None:
    """Return the first module that has parameters of its own."""
    modules = model.modules() if model is not None else ()
    return next((module for module in modules if next(module.parameters(recurse=False), None) is not None), None)


def convolves_bands(model: nn.Module, bands: int | None) -> bool:
    """Tell whether the first layer that reads as many channels as a spectrogram has bands convolves over its frames."""
    for module in model.modules():
        if isinstance(module, nn.Conv1d) and module.in_channels == bands:
            return True
        if isinstance(module, nn.Linear) and module.in_features == bands:
            return False
    return False


def reads_rows(model: Any, vision: Any) -> bool:
    """Tell whether an image encoder's first layer reads a patch as one row of numbers."""
    towers = (module for module in model.modules() if getattr(module, "config", None) is vision)
    return isinstance(first_layer(next(towers, None)), nn.Linear)

"""Build and save small random models whose parameters all differ from their defaults."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from small_models import MODELS


def randomize(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Set every parameter and floating-point buffer of the state dict to random values, including gains and biases."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                fan_in = tensor[0].numel() if tensor.dim() > 1 else 1
                values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64) / fan_in**0.5
                tensor.copy_(values.abs() + 0.5 if name.endswith("running_var") else values)
    return model


def build(case: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """Build a random transformers model of a case in `MODELS`."""
    import transformers

    model_class, config_class, settings = MODELS[case]
    config = getattr(transformers, config_class)(**{**settings, **changes})
    config._experts_implementation = "eager"  # the other implementations lack float64
    return randomize(getattr(transformers, model_class)(config).to(dtype)).eval()


def save_model(directory: Path, case: str = "Llama-untied", *, max_shard_size: str = "5GB", **changes: Any) -> Path:
    """Save a random transformers model with `save_pretrained` and return its directory."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    build(case, **changes).save_pretrained(directory, max_shard_size=max_shard_size)
    return directory


def change_tensors(directory: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    """Replace the tensors of a saved model by what a function makes of them; return the directory."""
    file = directory / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return directory


@cache
def mlp_tensors() -> dict[str, torch.Tensor]:
    """Return random tensors of `Sequential(Linear(5, 8), ReLU, Linear(8, 6), ReLU, Linear(6, 3))`."""
    sizes = {"0": (8, 5), "2": (6, 8), "4": (3, 6)}
    generator = torch.Generator().manual_seed(0)
    tensors = {f"{i}.weight": torch.randn(shape, generator=generator) for i, shape in sizes.items()}
    return {**tensors, **{f"{i}.bias": torch.randn(shape[0], generator=generator) for i, shape in sizes.items()}}


MLP_MODULE = """
from torch import nn
def build(config):
    sizes = [config["shapes"][f"{i}.weight"] for i in (0, 2, 4)]
    layers = [nn.Linear(columns, rows) for rows, columns in sizes]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
"""


def save_mlp(file: Path) -> Path:
    """Save a multilayer perceptron as one safetensors file without a config; return the file."""
    save_file(mlp_tensors(), file)
    return file


BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes per number


def any_floats(dtype, count, seed):
    """Return finite values of every magnitude: random bits, subnormal numbers, zeros and extremes."""
    info = torch.iinfo(BITS[dtype.itemsize])
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(info.min, info.max, (count,), generator=generator, dtype=BITS[dtype.itemsize])
    limits = torch.finfo(dtype)
    special = torch.tensor([0.0, -0.0, limits.max, limits.min, limits.tiny, limits.smallest_normal / 4], dtype=dtype)
    values = torch.cat([bits.view(dtype), (bits % 300).view(dtype), special])
    return values[torch.isfinite(values)]


def change_config(directory: Path, **values: Any) -> None:
    """Change keys in the config.json of a checkpoint."""
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

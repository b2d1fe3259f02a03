"""Small models with nothing left at its default, and checkpoints of them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 50,
    "head_dim": 8,
}


def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Give every parameter and floating-point buffer of the state dict random values, gains and biases too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                fan_in = tensor[0].numel() if tensor.dim() > 1 else 1
                values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64) / fan_in**0.5
                tensor.copy_(values.abs() + 0.5 if name.endswith("running_var") else values)
    return model


def reference_model(name: str, *, tied: bool = False, dtype: torch.dtype = torch.float32, **config: Any) -> Any:
    """A random transformers model, e.g. `reference_model("Llama", tied=True)`."""
    import transformers

    settings = getattr(transformers, f"{name}Config")(**{**SIZES, "tie_word_embeddings": tied, **config})
    return randomise(getattr(transformers, f"{name}ForCausalLM")(settings).to(dtype)).eval()


def save_reference(directory: Path, name: str = "Llama", *, max_shard_size: str = "5GB", **config: Any) -> Path:
    """Save a random transformers model as `save_pretrained` does; returns the directory."""
    reference_model(name, **config).save_pretrained(directory, max_shard_size=max_shard_size)
    return directory


@lru_cache(maxsize=1)
def mlp_tensors() -> dict[str, torch.Tensor]:
    """The tensors of `Sequential(Linear(5, 8), ReLU, Linear(8, 6), ReLU, Linear(6, 3))`, random."""
    sizes = {"0": (8, 5), "2": (6, 8), "4": (3, 6)}
    generator = torch.Generator().manual_seed(0)
    tensors = {f"{i}.weight": torch.randn(shape, generator=generator) for i, shape in sizes.items()}
    return {**tensors, **{f"{i}.bias": torch.randn(shape[0], generator=generator) for i, shape in sizes.items()}}


def save_mlp(file: Path) -> Path:
    """Save a multilayer perceptron without a config as one safetensors file; returns the file."""
    save_file(mlp_tensors(), file)
    return file

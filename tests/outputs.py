"""List and hash the content of folders, to compare outputs."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

KIB = 1024


def listing(directory: Path) -> list[str]:
    return sorted(file.name for file in directory.iterdir())


def digests(directory: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in directory.iterdir()}


def shards_of(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.safetensors"))


def merged(directory: Path) -> dict[str, Any]:
    """Return every tensor of a directory as (type, shape, bytes)."""
    tensors = {}
    for file in shards_of(directory):
        for name, tensor in load_file(file).items():
            assert name not in tensors
            values = tensor.contiguous().view(torch.uint8) if tensor.dim() else tensor
            tensors[name] = (tensor.dtype, tuple(tensor.shape), values.numpy().tobytes())
    return tensors


def metadata_of(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return opened.metadata()


def repeated(tensor: torch.Tensor, *counts: int) -> torch.Tensor:
    for dim, count in enumerate(counts):
        tensor = tensor.repeat_interleave(count, dim)
    return tensor

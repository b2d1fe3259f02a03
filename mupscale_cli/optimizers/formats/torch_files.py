"""Open and load torch.save files with optimizer state, and write blank ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mupscale_cli.optimizers.content import locate_optimizer
from mupscale_cli.optimizers.formats.base import OpenOptions
from mupscale_cli.optimizers.formats.torch_reading import read_torch_file
from mupscale_cli.optimizers.formats.torch_writing import TensorSlot, find_slots, save_blank
from mupscale_cli.optimizers.formats.tree_state import TreeState


def open_torch(options: OpenOptions) -> TreeState:
    """Read the structure of a training checkpoint that torch.save wrote.

    Raises:
        CheckpointError: the file cannot be read safely, or holds no optimizer state.
    """
    path = options.path
    file = read_torch_file(path)
    return TreeState(
        path,
        "torch",
        file.content,
        {tensor.spec.name: tensor for tensor in file.tensors.values()},
        locate_optimizer(file.content, options.key, str(path)),
        options.config,
        write_blank_file,
        lambda: torch.load(path, weights_only=True, map_location="cpu"),
    )


def write_blank_file(file: Path, content: Any) -> dict[str, TensorSlot]:
    """Write a blank file; return the slot of each place's data."""
    save_blank(file, content)
    slots = {slot.offset: slot for slot in find_slots(file)}
    stored = read_torch_file(file).tensors.values()
    return {tensor.spec.name: slots[tensor.offset] for tensor in stored if tensor.spec.num_bytes}

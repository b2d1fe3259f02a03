"""Read and write shards of torch.save with an index, such as `pytorch_model.bin.index.json` of transformers.

All of them are one content:

    weights     every tensor by name
    metadata    that of the index
    weight_map  the tensors in the order of the index, each with its file
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mupscale_cli.checkpoints.containers.base import Contents, TensorSlot
from mupscale_cli.checkpoints.containers.places import place_name
from mupscale_cli.checkpoints.containers.torch_file import load_torch_file, read_torch_file, write_blank_file
from mupscale_cli.checkpoints.formats.safetensors import require_shards, weight_map
from mupscale_cli.checkpoints.header import ReadableTensor
from mupscale_cli.checkpoints.json_files import read_json
from mupscale_cli.checkpoints.output_files import write_json
from mupscale_cli.errors import CheckpointError

_WEIGHTS = "weights"


def shard_files(index: Path) -> tuple[Path, ...]:
    """Return the shards that an index names, each once, in its order.

    Raises:
        CheckpointError: the index is invalid.
    """
    return tuple(index.with_name(name) for name in dict.fromkeys(weight_map(index, ".bin").values()))


def read_shards(index: Path) -> Contents:
    """Read the structure of all shards without running code or loading tensors.

    Raises:
        CheckpointError: a shard is missing, damaged or no bare state dict, or lacks a tensor that the index lists.
    """
    files = shard_files(index)
    require_shards(index, {file.name: file.is_file() for file in files})
    shards = {file.name: read_torch_file(file) for file in files}
    places = weight_map(index, ".bin")
    held = [(name, file) for file, shard in shards.items() for name in shard.content if name not in places]
    weights, tensors = {}, {}
    for name, file in (*places.items(), *held):  # transformers loads tensors that the index does not list as well
        tensor = shards[file].content.get(name) if isinstance(shards[file].content, Mapping) else None
        if not isinstance(tensor, torch.Tensor):
            raise CheckpointError(
                f"`{index}` places the tensor `{name}` in `{file}`, but it is not there",
                hint="the index and the shards do not belong together; save the checkpoint again",
            )
        place = (_WEIGHTS, name)
        weights[name] = tensor
        tensors[place] = _named(shards[file].tensors[name,], place_name(place))
    metadata = read_json(index).get("metadata", {})
    content = {_WEIGHTS: weights, "metadata": metadata, "weight_map": [*places.items(), *held]}
    return Contents(index, content, tensors)


def _named(tensor: Any, name: str) -> ReadableTensor:
    named: ReadableTensor = replace(tensor, spec=replace(tensor.spec, name=name))
    return named


def load_shards(contents: Contents) -> Any:
    """Load all shards with their tensors."""
    loaded = {file: load_torch_file(Contents(file, None, {})) for file in shard_files(contents.path)}
    weights = {name: loaded[contents.path.with_name(file)][name] for name, file in contents.content["weight_map"]}
    return {**contents.content, _WEIGHTS: weights}


def write_blank_shards(index: Path, content: Any) -> Mapping[str, TensorSlot]:
    """Write the index, and shards whose tensors have no data yet: each in the file of the narrow one of its name.

    A tensor that the narrow index does not list, such as an untied readout, gets into the last file.
    """
    weights, places = content[_WEIGHTS], dict(content["weight_map"])
    last = max(places.values())
    shards: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in weights.items():
        shards.setdefault(places.get(name, last), {})[name] = tensor
    found = {name: file for file, held in shards.items() for name in held}
    sizes = {
        "total_size": sum(tensor.numel() * tensor.element_size() for tensor in weights.values()),
        "total_parameters": sum(tensor.numel() for tensor in weights.values()),
    }
    known = {key: sizes.get(key, value) for key, value in content["metadata"].items()}
    write_json(index, {"metadata": known, "weight_map": {name: found[name] for name in sorted(found)}})
    return {
        place_name((_WEIGHTS, name)): slot
        for file, held in shards.items()
        for name, slot in write_blank_file(index.with_name(file), held).items()
    }

"""Read and write the folders of Megatron Core's `torch_dist`: a distributed checkpoint, and `common.pt` for the rest.

Both files are one content:

    model   the weights and the extra states of modules, by Megatron's names
    common  everything else, such as `args` and the iteration

The optimizer's state is left out. Its groups do not name their parameters, and Megatron Core 0.16 finds groups again by
`lr_mult` and `wd_mult` alone, so that two groups with different rates become one (`_filter_and_reorder_param_groups`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mupscale_cli.checkpoints.containers.base import Contents, TensorSlot
from mupscale_cli.checkpoints.containers.distributed import load_distributed, read_distributed, write_blank_folder
from mupscale_cli.checkpoints.containers.nested import map_tensors
from mupscale_cli.checkpoints.containers.places import Place, place_name
from mupscale_cli.checkpoints.containers.torch_file import load_torch_file, read_torch_file, write_blank_file
from mupscale_cli.checkpoints.header import ReadableTensor
from mupscale_cli.checkpoints.json_files import read_json
from mupscale_cli.checkpoints.output_files import write_json

COMMON, METADATA = "common.pt", "metadata.json"
_OPTIMIZER = ("optimizer", "opt_param_scheduler")  # and every key that begins with the first one and a dot


def read_megatron(path: Path) -> Contents:
    """Read the structure of a checkpoint, without the state of its optimizer.

    Raises:
        CheckpointError: it cannot be read without running code.
    """
    weights, common = read_distributed(path), read_torch_file(path / COMMON)
    model = {key: value for key, value in weights.content.items() if not _is_optimizer(key)}
    rest = {key: value for key, value in common.content.items() if not _is_optimizer(key)}
    content = {"model": model, "common": rest, "metadata": read_json(path / METADATA)}
    named = {("model", *place): tensor for place, tensor in weights.tensors.items() if not _is_optimizer(place[0])}
    others = {("common", *place): tensor for place, tensor in common.tensors.items() if not _is_optimizer(place[0])}
    return Contents(path, content, {place: _named(tensor, place) for place, tensor in (named | others).items()})


def _is_optimizer(key: Any) -> bool:
    return key in _OPTIMIZER or str(key).startswith(f"{_OPTIMIZER[0]}.")


def _named(tensor: ReadableTensor, place: Place) -> ReadableTensor:
    named: ReadableTensor = replace(tensor, spec=replace(tensor.spec, name=place_name(place)))  # type: ignore[type-var]
    return named


def load_megatron(contents: Contents) -> Any:
    """Load a checkpoint with its tensors."""
    weights = load_distributed(read_distributed(contents.path))
    common = load_torch_file(read_torch_file(contents.path / COMMON))
    loaded = {"model": weights, "common": common}

    def value(place: Place) -> Any:
        found: Any = loaded
        for key in place:
            found = found[key]
        return found

    return map_tensors(contents.content, (), lambda place, _: value(place))


def write_blank_megatron(path: Path, content: Any) -> Mapping[str, TensorSlot]:
    """Write a checkpoint whose tensors have no data yet; return the slot of each."""
    weights = write_blank_folder(path, content["model"])
    common = write_blank_file(path / COMMON, content["common"])
    write_json(path / METADATA, content["metadata"])
    return {f"model/{name}": slot for name, slot in weights.items()} | {
        f"common/{name}": slot for name, slot in common.items()
    }

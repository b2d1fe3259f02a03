"""An optimizer's state in memory, by the names of parameters: for checking and for trying out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.distributed.checkpoint.state_dict_loader import load

from mupscale_cli.errors import CheckpointError
from mupscale_cli.optimizer.content import at
from mupscale_cli.optimizer.distributed import DistributedState, alone
from mupscale_cli.optimizer.files import FLAT_PREFIXES, SafetensorsState, open_optimizer
from mupscale_cli.optimizer.order import names_by_order
from mupscale_cli.optimizer.torchfile import place_name, walk
from mupscale_cli.optimizer.torchstate import TorchState
from mupscale_cli.optimizer.tree import OptimizerTree, parse_tree


def load_state(
    path: Path, config: Mapping[str, Any] | None, *, key: str | None = None, allow_pickle: bool = False
) -> OptimizerTree:
    """Load an optimizer's state.

    Args:
        path: as `open_optimizer` takes it.
        config: config.json, by which numbered parameters may be named.
        key: dotted keys that lead to it.
        allow_pickle: read distributed checkpoints.

    Raises:
        CheckpointError: it cannot be read.
    """
    source = open_optimizer(path, config, key=key, allow_pickle=allow_pickle)
    if isinstance(source, SafetensorsState):
        return _flat(source)
    if isinstance(source, TorchState):
        content = at(torch.load(source.path, weights_only=True, map_location="cpu"), source.root)
    elif isinstance(source, DistributedState):
        content = at(_filled(source), source.root)
    else:
        raise CheckpointError(f"`{path}` cannot be loaded")
    return parse_tree(content, lambda groups, states: names_by_order(config, groups, states))


def _flat(source: SafetensorsState) -> OptimizerTree:
    tensors: dict[str, torch.Tensor] = {}
    for file in dict.fromkeys(tensor.file for tensor in source.stored.values()):
        with safe_open(file, framework="pt") as opened:
            tensors.update({name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118 (no mapping)
    prefix = next(prefix for prefix in FLAT_PREFIXES if all(name.startswith(prefix) for name in tensors))
    states: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        parameter, _, key = name.removeprefix(prefix).rpartition(".")
        states.setdefault(parameter, {})[key] = tensor
    return OptimizerTree("flat", states, (), {})


def _filled(source: DistributedState) -> Any:
    tensors = {
        place_name(place): torch.empty(tensor.shape, dtype=tensor.dtype) for place, tensor in walk(source.content)
    }
    by_key = {source.keys[name]: tensor for name, tensor in tensors.items()}
    with alone():
        load(by_key, checkpoint_id=source.path, no_dist=True)

    def fill(content: Any, place: tuple[Any, ...]) -> Any:
        if isinstance(content, torch.Tensor):
            return tensors[place_name(place)]
        if isinstance(content, Mapping):
            return {key: fill(value, (*place, key)) for key, value in content.items()}
        if isinstance(content, list):
            return [fill(value, (*place, index)) for index, value in enumerate(content)]
        return content

    return fill(source.content, ())

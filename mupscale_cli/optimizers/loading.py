"""An optimizer's state in memory, by the names of parameters: for checking and for trying out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from mupscale_cli.errors import CheckpointError
from mupscale_cli.optimizers.content import at
from mupscale_cli.optimizers.files import FLAT_PREFIXES, SafetensorsState, open_optimizer
from mupscale_cli.optimizers.formats.distributed import load_distributed
from mupscale_cli.optimizers.formats.torch import TreeState
from mupscale_cli.optimizers.order import names_by_order
from mupscale_cli.optimizers.tree import OptimizerTree, parse_tree


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
    if not isinstance(source, TreeState):
        raise CheckpointError(f"`{path}` cannot be loaded")
    if source.kind == "torch":
        whole = torch.load(source.path, weights_only=True, map_location="cpu")
    else:
        whole = load_distributed(source)
    content = at(whole, source.root)
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

"""Distributing tensors over output files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from huggingface_hub import split_state_dict_into_shards_factory

from mupscale_cli.plan.types import Shard, TensorPlan

DEFAULT_SHARD_BYTES = 5 * 10**9


def split_into_shards(
    tensors: Sequence[TensorPlan], max_bytes: int | None, pattern: str = "model{suffix}.safetensors"
) -> tuple[Shard, ...]:
    """Distribute tensors over files and keep their order.

    Args:
        tensors: plans of the tensors to write.
        max_bytes: maximum size of a file, in bytes of tensor data; None for a single file.
        pattern: pattern of the file names.
    """
    by_name: dict[str, Any] = {tensor.target.name: tensor for tensor in tensors}
    split = split_state_dict_into_shards_factory(
        by_name,
        get_storage_size=lambda tensor: tensor.target.num_bytes,
        filename_pattern=pattern,
        max_shard_size=max_bytes if max_bytes is not None else 1 + sum(t.target.num_bytes for t in tensors),
    )
    return tuple(
        Shard(file, tuple(by_name[name] for name in names)) for file, names in split.filename_to_tensors.items()
    )

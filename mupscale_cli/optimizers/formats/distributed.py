"""Folders of torch.distributed.checkpoint (FSDP2, torchtitan, accelerate) with optimizer state."""

from __future__ import annotations

from pathlib import Path

from mupscale_cli.checkpoints.containers.kinds import DISTRIBUTED
from mupscale_cli.errors import CheckpointError
from mupscale_cli.optimizers.formats.base import OpenOptions, OptimizerSource, StateFormat


class Distributed(StateFormat):
    """A folder with a pickle called `.metadata`."""

    markers = ("optimizer/.metadata", "optim/.metadata", "optimizer_0/.metadata")

    def files(self, name: str) -> tuple[str, ...]:
        return (f"{name}/*",)

    def recognizes(self, path: Path) -> bool:
        return path.is_dir()

    def open(self, options: OpenOptions) -> OptimizerSource:
        if not DISTRIBUTED.recognizes(options.path):
            raise CheckpointError(
                f"no optimizer state in `{options.path}`: it has no `.metadata` of a distributed checkpoint"
            )
        from mupscale_cli.optimizers.formats.tree_state import open_tree  # imports torch

        return open_tree(DISTRIBUTED, options)

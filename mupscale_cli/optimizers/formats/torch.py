"""Files written by torch.save: optimizer state, alone or with weights."""

from __future__ import annotations

from pathlib import Path

from mupscale_cli.checkpoints.containers.kinds import TORCH_FILE
from mupscale_cli.optimizers.formats.base import OpenOptions, OptimizerSource, StateFormat


class Torch(StateFormat):
    """One file that `torch.save` wrote."""

    markers = ("optimizer.pt", "optimizer.bin", "optimizer.pth", "optim.pt")

    def files(self, name: str) -> tuple[str, ...]:
        return (name, name.replace("_rank0.", "_rank[0-9]*."))  # a trainer may have one for each process

    def recognizes(self, path: Path) -> bool:
        return path.is_file()

    def open(self, options: OpenOptions) -> OptimizerSource:
        from mupscale_cli.optimizers.formats.tree_state import open_tree  # imports torch

        return open_tree(TORCH_FILE, options)

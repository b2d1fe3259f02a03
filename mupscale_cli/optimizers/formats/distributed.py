"""Folders of torch.distributed.checkpoint (FSDP2, torchtitan, accelerate). Imports torch only to open one."""

from __future__ import annotations

from pathlib import Path

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
        path = options.path
        if not (path / ".metadata").is_file():
            raise CheckpointError(f"no optimizer state in `{path}`: it has no `.metadata` of a distributed checkpoint")
        if not options.allow_pickle:
            raise CheckpointError(
                f"`{path}` is a torch distributed checkpoint, whose metadata is a pickle that could run code",
                hint="if you trust its source, add `--allow-pickle`; omit the state with `--optimizer none`",
            )
        from mupscale_cli.optimizers.formats.distributed_files import open_distributed

        return open_distributed(options)

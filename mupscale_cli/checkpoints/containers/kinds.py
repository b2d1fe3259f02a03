"""The kinds of containers. Imports torch only to open or to write one."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from mupscale_cli.checkpoints.containers.base import ZIP, Container, Contents, TensorSlot
from mupscale_cli.checkpoints.header import open_file


class TorchFile(Container):
    """One file of torch.save."""

    name = "torch"

    def recognizes(self, path: Path) -> bool:
        if not path.is_file():
            return False
        with open_file(path) as stream:
            return stream.read(len(ZIP)) == ZIP

    def root(self, file: Path) -> Path:
        return file

    def files(self, path: Path) -> tuple[Path, ...]:
        return (path,)

    def read(self, path: Path) -> Contents:
        from mupscale_cli.checkpoints.containers.torch_file import read_torch_file

        return read_torch_file(path)

    def load(self, contents: Contents) -> Any:
        from mupscale_cli.checkpoints.containers.torch_file import load_torch_file

        return load_torch_file(contents)

    def write_blank(self, path: Path, content: Any) -> Mapping[str, TensorSlot]:
        from mupscale_cli.checkpoints.containers.torch_file import write_blank_file

        return write_blank_file(path, content)


class DistributedFolder(Container):
    """A folder of torch.distributed.checkpoint."""

    name = "distributed"

    def recognizes(self, path: Path) -> bool:
        return (path / ".metadata").is_file()

    def root(self, file: Path) -> Path:
        return file.parent

    def files(self, path: Path) -> tuple[Path, ...]:
        return (path / ".metadata", *path.glob("*.distcp"))

    def read(self, path: Path) -> Contents:
        from mupscale_cli.checkpoints.containers.distributed import read_distributed

        return read_distributed(path)

    def load(self, contents: Contents) -> Any:
        from mupscale_cli.checkpoints.containers.distributed import load_distributed

        return load_distributed(contents)

    def write_blank(self, path: Path, content: Any) -> Mapping[str, TensorSlot]:
        from mupscale_cli.checkpoints.containers.distributed import write_blank_folder

        return write_blank_folder(path, content)


class MegatronFolder(DistributedFolder):
    """A folder of Megatron Core's `torch_dist`: a distributed checkpoint and `common.pt`."""

    name = "megatron"

    def recognizes(self, path: Path) -> bool:
        return super().recognizes(path) and (path / "common.pt").is_file()

    def files(self, path: Path) -> tuple[Path, ...]:
        return (*super().files(path), path / "common.pt", path / "metadata.json")

    def read(self, path: Path) -> Contents:
        from mupscale_cli.checkpoints.containers.megatron import read_megatron

        return read_megatron(path)

    def load(self, contents: Contents) -> Any:
        from mupscale_cli.checkpoints.containers.megatron import load_megatron

        return load_megatron(contents)

    def write_blank(self, path: Path, content: Any) -> Mapping[str, TensorSlot]:
        from mupscale_cli.checkpoints.containers.megatron import write_blank_megatron

        return write_blank_megatron(path, content)


class ZeroFolder(Container):
    """A step's folder of DeepSpeed's ZeRO."""

    name = "zero"

    def recognizes(self, path: Path) -> bool:
        return path.is_dir() and any(path.glob("*_model_states.pt"))

    def root(self, file: Path) -> Path:
        return file.parent.parent if file.parent.name == "zero" else file.parent

    def files(self, path: Path) -> tuple[Path, ...]:
        return tuple(file for pattern in ("*_states.pt", "zero/**/*.pt") for file in path.glob(pattern))

    def read(self, path: Path) -> Contents:
        from mupscale_cli.checkpoints.containers.zero import read_zero

        return read_zero(path)

    def load(self, contents: Contents) -> Any:
        from mupscale_cli.checkpoints.containers.zero import load_zero

        return load_zero(contents)

    def write_blank(self, path: Path, content: Any) -> Mapping[str, TensorSlot]:
        from mupscale_cli.checkpoints.containers.zero import write_blank_zero

        return write_blank_zero(path, content)


class TorchShards(Container):
    """Files of torch.save with an index, which the container is called by."""

    name = "shards"

    def recognizes(self, path: Path) -> bool:
        return path.name.endswith(".bin.index.json") and path.is_file()

    def root(self, file: Path) -> Path:
        return file

    def files(self, path: Path) -> tuple[Path, ...]:
        from mupscale_cli.checkpoints.containers.shards import shard_files

        return (path, *shard_files(path))

    def read(self, path: Path) -> Contents:
        from mupscale_cli.checkpoints.containers.shards import read_shards

        return read_shards(path)

    def load(self, contents: Contents) -> Any:
        from mupscale_cli.checkpoints.containers.shards import load_shards

        return load_shards(contents)

    def write_blank(self, path: Path, content: Any) -> Mapping[str, TensorSlot]:
        from mupscale_cli.checkpoints.containers.shards import write_blank_shards

        return write_blank_shards(path, content)


class Consolidated(TorchFile):
    """Files of Meta's Llama, one for each process; the container is called by the first and written as that alone."""

    name = "consolidated"

    def recognizes(self, path: Path) -> bool:
        return fnmatchcase(path.name, "consolidated.[0-9][0-9].pth")

    def root(self, file: Path) -> Path:
        return file.with_name("consolidated.00.pth")

    def files(self, path: Path) -> tuple[Path, ...]:
        from mupscale_cli.checkpoints.containers.consolidated import rank_files

        return rank_files(path)

    def read(self, path: Path) -> Contents:
        from mupscale_cli.checkpoints.containers.consolidated import read_consolidated

        return read_consolidated(path)

    def load(self, contents: Contents) -> Any:
        from mupscale_cli.checkpoints.containers.consolidated import load_consolidated

        return load_consolidated(contents)


TORCH_FILE = TorchFile()
CONSOLIDATED = Consolidated()
SHARDS = TorchShards()
DISTRIBUTED = DistributedFolder()
MEGATRON = MegatronFolder()
ZERO = ZeroFolder()

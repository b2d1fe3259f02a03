"""Weights as `save_pretrained` writes them: one safetensors file, or several with an index."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mupscale_cli.checkpoints.formats.base import Folder, Weights, WeightsFormat
from mupscale_cli.checkpoints.header import Header, StoredTensor, parse_header
from mupscale_cli.checkpoints.json_files import is_file_name, read_json
from mupscale_cli.errors import CheckpointError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_THREADS = 8  # a large model of the Hub has a hundred files, each a round trip away
_OTHERS = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")  # pickles, and formats of other frameworks


class Safetensors(WeightsFormat):
    """`model.safetensors`, the shards of `model.safetensors.index.json`, or the only safetensors file of a folder."""

    suffixes = (".safetensors",)
    indices = (INDEX,)

    def recognizes(self, file: Path) -> bool:
        return file.suffix not in _OTHERS  # a file of the Hub's cache may have no suffix at all

    def files(self, folder: Folder) -> tuple[Path, ...]:
        path, names = folder.path, folder.names
        if WEIGHTS in names:
            return (path / WEIGHTS,)
        if INDEX in names:
            shards = dict.fromkeys(weight_map(path / INDEX).values())
            missing = [shard for shard in shards if shard not in names]
            if missing:
                raise CheckpointError(
                    f"`{path / INDEX}` names `{missing[0]}`, which is not there "
                    f"({len(missing)} of {len(shards)} shards are missing)",
                    hint="download the missing shards, or save the checkpoint again",
                )
            return tuple(path / shard for shard in shards)
        found = sorted(name for name in names if name.endswith(".safetensors") and "/" not in name)
        if len(found) == 1:
            return (path / found[0],)
        if found:
            raise CheckpointError(
                f"`{path}` has {len(found)} safetensors files, but neither `{WEIGHTS}` nor `{INDEX}`",
                hint="give one of the files by name, or save the model with its index",
            )
        return ()

    def read(self, folder: Folder, files: tuple[Path, ...]) -> Weights:
        def header(file: Path) -> Header:
            with folder.open(file) as stream:
                return parse_header(stream, file)

        with ThreadPoolExecutor(_THREADS) as pool:
            headers = list(pool.map(header, files))
        tensors = merged(headers, folder.path)
        if files[0].name != WEIGHTS and INDEX in folder.names:
            _check_index(folder.path / INDEX, tensors)
        return Weights(tensors, headers[0].metadata)


def merged(headers: Iterable[Header], path: Path) -> dict[str, StoredTensor]:
    """The tensors of several files by name.

    Raises:
        CheckpointError: there are none, or two of a name.
    """
    tensors: dict[str, StoredTensor] = {}
    for header in headers:
        for tensor in header.tensors:
            name = tensor.spec.name
            if name in tensors:
                raise CheckpointError(
                    f"`{name}` is both in `{tensors[name].file.name}` and in `{tensor.file.name}`",
                    hint="the shards do not belong together; save the checkpoint again",
                )
            tensors[name] = tensor
    if not tensors:
        raise CheckpointError(f"`{path}` holds no tensors")
    return tensors


def weight_map(index: Path) -> dict[str, str]:
    """Which file holds each tensor, as an index says.

    Raises:
        CheckpointError: it does not say it, or names what is not beside it.
    """
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(file, str) for file in found.values()):
        raise CheckpointError(f"`{index}` has no `weight_map` from tensor to file")
    for file in set(found.values()):
        if not is_file_name(file) or not file.endswith(".safetensors"):
            raise CheckpointError(f"`{index}` names `{file}`, which is not a safetensors file beside it")
    return found


def _check_index(index: Path, tensors: Mapping[str, StoredTensor]) -> None:
    said = weight_map(index)
    for name, file in said.items():
        if name not in tensors or tensors[name].file.name != file:
            raise CheckpointError(
                f"`{index}` says that `{name}` is in `{file}`, but it is not",
                hint="index and shards do not belong together; save the checkpoint again",
            )
    extra = next((name for name in tensors if name not in said), None)
    if extra:
        raise CheckpointError(
            f"`{tensors[extra].file}` holds `{extra}`, which `{index.name}` does not name",
            hint="index and shards do not belong together; save the checkpoint again",
        )

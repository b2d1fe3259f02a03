"""Safetensors weights as `save_pretrained` writes them: one file, or shards with an index."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mupscale_cli.checkpoints.formats.base import Folder, Weights, WeightsFormat
from mupscale_cli.checkpoints.header import Header, StoredTensor, parse_header
from mupscale_cli.checkpoints.json_files import is_file_name, read_json
from mupscale_cli.checkpoints.libraries import INDICES, WEIGHTS
from mupscale_cli.errors import CheckpointError, OtherFormatError
from mupscale_cli.text import listed

_MAX_NAMED = 4
_THREADS = 8  # a large model on the Hub has a hundred files, and each header costs a round trip
_OTHER_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")  # pickles and other frameworks' formats


class Safetensors(WeightsFormat):
    """Reads the file or the shards that a library reads, such as model.safetensors, or a folder's only such file."""

    suffixes = (".safetensors",)
    indices = INDICES

    def recognizes(self, file: Path) -> bool:
        return file.suffix not in _OTHER_SUFFIXES  # files in the Hub's cache may have no suffix

    def files(self, folder: Folder) -> tuple[Path, ...]:
        path, names = folder.path, folder.names
        for name, index in zip(WEIGHTS, INDICES, strict=True):
            if name in names:
                return (path / name,)
            if index in names:
                shards = dict.fromkeys(weight_map(path / index).values())
                require_shards(path / index, {shard: shard in names for shard in shards})
                return tuple(path / shard for shard in shards)
        candidates = sorted(name for name in names if name.endswith(".safetensors") and "/" not in name)
        if len(candidates) == 1:
            return (path / candidates[0],)
        if candidates:
            raise OtherFormatError(
                f"`{path}` has {len(candidates)} safetensors files, but neither `{WEIGHTS[0]}` nor `{INDICES[0]}`",
                hint="pass one of the files by name, or save the model with its index",
            )
        return ()

    def read(self, folder: Folder, files: tuple[Path, ...]) -> Weights:
        def header(file: Path) -> Header:
            with folder.open(file) as stream:
                return parse_header(stream, file)

        with ThreadPoolExecutor(_THREADS) as pool:
            headers = list(pool.map(header, files))
        index = next((folder.path / name for name in INDICES if name in folder.names), None)
        if files[0].name in WEIGHTS:
            index = None
        return Weights(merge_headers(headers, folder.path, index), headers[0].metadata)


def merge_headers(headers: Iterable[Header], path: Path, index: Path | None = None) -> dict[str, StoredTensor]:
    """Collect the tensors of several files by name.

    Args:
        headers: headers of the files, in order.
        path: the checkpoint, for messages.
        index: the index of the files, which chooses among several tensors of one name; None if there is none. Tensors
            that it does not list belong to the checkpoint as well, since transformers loads every tensor of a shard.

    Raises:
        CheckpointError: there are no tensors, two have the same name and the index does not choose between them, or
            the index lists a tensor that does not exist.
    """
    listed_in = {} if index is None else weight_map(index)
    tensors: dict[str, StoredTensor] = {}
    for header in headers:
        for tensor in header.tensors:
            name, file = tensor.spec.name, tensor.file.name
            if listed_in.get(name, file) != file:
                continue
            if name in tensors:
                raise CheckpointError(
                    f"`{name}` is in both `{tensors[name].file.name}` and `{file}`",
                    hint="the shards do not belong together; save the checkpoint again",
                )
            tensors[name] = tensor
    missing = next((name for name in listed_in if name not in tensors), None)
    if missing:
        raise CheckpointError(
            f"`{index}` places `{missing}` in `{listed_in[missing]}`, but it is not there",
            hint="the index and the shards do not belong together; save the checkpoint again",
        )
    if not tensors:
        raise CheckpointError(f"`{path}` contains no tensors")
    return tensors


def require_shards(index: Path, exists: Mapping[str, bool]) -> None:
    """Check that all files that an index lists exist.

    Raises:
        CheckpointError: some do not.
    """
    if missing := [name for name, is_there in exists.items() if not is_there]:
        raise CheckpointError(
            f"`{index}` lists files that do not exist: {listed(missing, _MAX_NAMED)} ({len(missing)} of {len(exists)} "
            "shards are missing)",
            hint="download the missing shards, or save the checkpoint again",
        )


def weight_map(index: Path, suffix: str = ".safetensors") -> dict[str, str]:
    """Read the mapping from tensor names to file names, all with one suffix, in an index.

    Raises:
        CheckpointError: the mapping is missing or invalid, or lists a file outside the folder.
    """
    mapping = read_json(index).get("weight_map")
    if not isinstance(mapping, dict) or not mapping or not all(isinstance(file, str) for file in mapping.values()):
        raise CheckpointError(f"`{index}` has no valid `weight_map` from tensor to file")
    for file in set(mapping.values()):
        if not is_file_name(file) or not file.endswith(suffix):
            raise CheckpointError(f"`{index}` lists `{file}`, which is not a {suffix[1:]} file in the same folder")
    return mapping

"""Safetensors weights as `save_pretrained` writes them: one file, or shards with an index."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mupscale_cli.checkpoints.formats.base import Folder, Weights, WeightsFormat
from mupscale_cli.checkpoints.header import Header, StoredTensor, parse_header
from mupscale_cli.checkpoints.json_files import is_file_name, read_json
from mupscale_cli.errors import CheckpointError, OtherFormatError
from mupscale_cli.libraries import INDICES, WEIGHTS

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
                missing = [shard for shard in shards if shard not in names]
                if missing:
                    raise CheckpointError(
                        f"`{path / index}` lists `{missing[0]}`, which does not exist "
                        f"({len(missing)} of {len(shards)} shards are missing)",
                        hint="download the missing shards, or save the checkpoint again",
                    )
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
        tensors = merge_headers(headers, folder.path)
        index = next((name for name in INDICES if name in folder.names), None)
        if index is not None and files[0].name not in WEIGHTS:
            _check_index(folder.path / index, tensors)
        return Weights(tensors, headers[0].metadata)


def merge_headers(headers: Iterable[Header], path: Path) -> dict[str, StoredTensor]:
    """Collect the tensors of several files by name.

    Args:
        headers: headers of the files, in order.
        path: the checkpoint, for messages.

    Raises:
        CheckpointError: there are no tensors, or two have the same name.
    """
    tensors: dict[str, StoredTensor] = {}
    for header in headers:
        for tensor in header.tensors:
            name = tensor.spec.name
            if name in tensors:
                raise CheckpointError(
                    f"`{name}` is in both `{tensors[name].file.name}` and `{tensor.file.name}`",
                    hint="the shards do not belong together; save the checkpoint again",
                )
            tensors[name] = tensor
    if not tensors:
        raise CheckpointError(f"`{path}` contains no tensors")
    return tensors


def weight_map(index: Path) -> dict[str, str]:
    """Read the mapping from tensor names to file names in an index.

    Raises:
        CheckpointError: the mapping is missing or invalid, or lists a file outside the folder.
    """
    mapping = read_json(index).get("weight_map")
    if not isinstance(mapping, dict) or not mapping or not all(isinstance(file, str) for file in mapping.values()):
        raise CheckpointError(f"`{index}` has no valid `weight_map` from tensor to file")
    for file in set(mapping.values()):
        if not is_file_name(file) or not file.endswith(".safetensors"):
            raise CheckpointError(f"`{index}` lists `{file}`, which is not a safetensors file in the same folder")
    return mapping


def _check_index(index: Path, tensors: Mapping[str, StoredTensor]) -> None:
    mapping = weight_map(index)
    hint = "the index and the shards do not belong together; save the checkpoint again"
    for name, file in mapping.items():
        if name not in tensors or tensors[name].file.name != file:
            raise CheckpointError(f"`{index}` places `{name}` in `{file}`, but it is not there", hint=hint)
    extra = next((name for name in tensors if name not in mapping), None)
    if extra:
        raise CheckpointError(
            f"`{tensors[extra].file}` contains `{extra}`, which is not listed in `{index.name}`", hint=hint
        )

"""Files of Meta's Llama, one for each process of its model parallelism, read and written as one state dict.

`consolidated.NN.pth` has the rows or the columns of a matrix that the process NN computes with. Norms are in every
file. A matrix that reads the residual stream is divided by its outputs, and one that writes into it by its inputs
(fairscale's `ColumnParallelLinear` and `RowParallelLinear`). Embeddings are divided by tokens since Llama 3, and by
channels before that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from mupscale_cli.checkpoints.containers.base import Contents
from mupscale_cli.checkpoints.containers.places import Place, place_name
from mupscale_cli.checkpoints.containers.torch_file import blank_tensor, load_torch_file, read_torch_file
from mupscale_cli.checkpoints.header import JoinedTensor, ReadableTensor, StoredTensor
from mupscale_cli.dtypes import TensorSpec, dtype_of
from mupscale_cli.errors import CheckpointError
from mupscale_cli.text import listed

_NAME = re.compile(r"consolidated\.(\d\d)\.pth")
_SQUARE = "layers.0.attention.wo.weight"  # the head's size is dim / n_heads, so only its division makes it oblong
_COLUMNS = (".attention.wo.weight", ".feed_forward.w2.weight")
_EMBEDDING = "tok_embeddings.weight"


def rank_files(path: Path) -> tuple[Path, ...]:
    """Return all files of a checkpoint, given one of them, in the order of the processes."""
    return tuple(sorted(file for file in path.parent.iterdir() if _NAME.fullmatch(file.name)))


def read_consolidated(path: Path) -> Contents:
    """Read the structure of all files without running code or loading tensors.

    Raises:
        CheckpointError: a file is missing, damaged or no bare state dict, or the files do not belong together.
    """
    files = rank_files(path)
    contents = [read_torch_file(file) for file in files]
    parts = [_state_dict(each) for each in contents]
    _check_ranks(files, parts)
    _check_names(files, parts)
    content, tensors = {}, {}
    for name in parts[0]:
        place: Place = (name,)
        stored = tuple(each.tensors[place] for each in contents)
        whole = _join(name, parts, stored)
        content[name], tensors[place] = blank_tensor(whole.spec), whole
    return Contents(path, content, tensors)


def load_consolidated(contents: Contents) -> dict[str, torch.Tensor]:
    """Load all files with their tensors, joined."""
    parts = [load_torch_file(Contents(file, None, {})) for file in rank_files(contents.path)]
    return {
        name: parts[0][name] if (dim := _split_dim(name, parts)) is None else torch.cat([p[name] for p in parts], dim)
        for name in parts[0]
    }


def _state_dict(contents: Contents) -> Mapping[str, torch.Tensor]:
    content = contents.content
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise CheckpointError(f"`{contents.path}` is not a state dict, as Meta's code writes it")
    return content


def _check_ranks(files: Sequence[Path], parts: Sequence[Mapping[str, torch.Tensor]]) -> None:
    """Check that each process has its file: a square matrix tells how many have a part of it."""
    square = parts[0].get(_SQUARE)
    count = 1 if square is None or square.dim() != 2 else max(1, square.shape[0] // max(1, square.shape[1]))
    expected = [f"consolidated.{rank:02}.pth" for rank in range(count)]
    found = [file.name for file in files]
    folder = files[0].parent
    if missing := [name for name in expected if name not in found]:
        raise CheckpointError(
            f"`{folder}` lacks {listed(missing)}: it has {len(found)} of the {count} files of a checkpoint",
            hint="download or copy the missing files into the folder",
        )
    if found != expected:
        raise CheckpointError(
            f"`{folder}` has {listed(found)}, but the checkpoint of `{found[0]}` has {count}",
            hint="remove the files that do not belong to it",
        )


def _check_names(files: Sequence[Path], parts: Sequence[Mapping[str, torch.Tensor]]) -> None:
    """Check that all files have the same tensors, of the same shapes and data types."""
    kinds = [{name: (tuple(tensor.shape), tensor.dtype) for name, tensor in part.items()} for part in parts]
    for file, kind in zip(files, kinds, strict=True):
        if kind != kinds[0]:
            name = next(name for name in {**kinds[0], **kind} if kind.get(name) != kinds[0].get(name))
            raise CheckpointError(
                f"`{file}` has {_shape(kind, name)} as `{name}`, but `{files[0].name}` has {_shape(kinds[0], name)}",
                hint="the files belong to different checkpoints; download or copy them again",
            )


def _shape(kind: Mapping[str, tuple[tuple[int, ...], torch.dtype]], name: str) -> str:
    return f"{kind[name][1]} {list(kind[name][0])}".removeprefix("torch.") if name in kind else "nothing"


def _split_dim(name: str, parts: Sequence[Mapping[str, torch.Tensor]]) -> int | None:
    """Return the dimension along which a tensor is divided; None if every file has all of it."""
    tensor = parts[0][name]
    if len(parts) == 1 or tensor.dim() != 2:
        return None
    is_by_channels = name.endswith(_EMBEDDING) and tensor.shape[1] < parts[0][_SQUARE].shape[0]
    return 1 if name.endswith(_COLUMNS) or is_by_channels else 0


def _join(name: str, parts: Sequence[Mapping[str, torch.Tensor]], stored: Sequence[ReadableTensor]) -> ReadableTensor:
    dim = _split_dim(name, parts)
    if dim is None:
        return stored[0]
    shape = list(parts[0][name].shape)
    shape[dim] *= len(parts)
    spec = TensorSpec(place_name((name,)), dtype_of(parts[0][name].dtype).name, tuple(shape))
    return JoinedTensor(spec, tuple(each for each in stored if isinstance(each, StoredTensor)), dim)

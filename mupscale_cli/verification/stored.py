"""Handing a checkpoint to the library that builds its model: its tensors by the model's names, or its folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from mupscale_cli.architecture.wrappers import strip_wrappers
from mupscale_cli.checkpoints.reading import Checkpoint
from mupscale_cli.checkpoints.scratch import scratch_folder
from mupscale_cli.engine.reading import MappedFile, map_tensor
from mupscale_cli.verification.streamed import StreamedWeight

PlainName = Callable[[str], str]  # returns the model's name for a stored tensor


def stored_tensors(
    checkpoint: Checkpoint, plain_name: PlainName = strip_wrappers, streamed: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Return a checkpoint's tensors by the names that its model knows, mapped from their files.

    transformers itself would read the last file that has a tensor, even if the index names another one, and would not
    recognize a name with wrappers.

    Args:
        checkpoint: the checkpoint.
        plain_name: returns the model's name for a stored tensor.
        streamed: type in which the model shall see floating-point tensors, whose elements stay as they are stored.
            Default: all tensors are as stored.
    """
    files: dict[Path, MappedFile] = {}
    tensors: dict[str, Tensor] = {}
    for name, stored in checkpoint.tensors.items():
        tensor, file = map_tensor(stored, files)
        if streamed is not None and tensor.is_floating_point():
            tensor = StreamedWeight(tensor, streamed, torch.device("cpu"), (file,) if file else ())
        tensors[plain_name(name)] = tensor
    return tensors


@contextmanager
def as_directory(checkpoint: Checkpoint, *, is_alone: bool = False) -> Iterator[Path]:
    """Yield a folder that the checkpoint's library can load.

    That is the checkpoint's own folder, or for a single file or another config a temporary one with links.

    Args:
        checkpoint: the checkpoint.
        is_alone: whether the folder must contain nothing else, so that the library can read no other file.
    """
    library, is_single = checkpoint.library, len(checkpoint.files) == 1
    is_complete = not (is_alone or checkpoint.is_file or checkpoint.settings or checkpoint.trained)
    if is_complete and (not is_single or checkpoint.files[0].name == library.weights[0]):
        yield checkpoint.path
        return
    with scratch_folder() as directory:
        (directory / library.config).write_text(json.dumps(checkpoint.config), encoding="utf-8")
        if checkpoint.trained is not None:  # its weights are handed over
            yield directory
            return
        for file in checkpoint.files:
            _link(file, directory / (library.weights[0] if is_single else file.name))
        if not is_single:
            indices = (checkpoint.path / name for name in library.indices)
            _link(next(file for file in indices if file.exists()), directory / library.index)
        yield directory


def _link(file: Path, name: Path) -> None:
    try:
        name.symlink_to(file.resolve())
    except OSError:  # Windows requires a privilege for symbolic links
        os.link(file, name)

"""Widen the state of the learning rate scheduler that the Trainer of transformers saves next to optimizer.pt."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from mupscale_cli.checkpoints.containers.nested import check_structure
from mupscale_cli.checkpoints.containers.torch_file import check_archive
from mupscale_cli.errors import CheckpointError
from mupscale_cli.files import read_bytes
from mupscale_cli.text import first_line

_RATES = ("base_lrs", "_last_lr", "min_lrs", "max_lrs")


def widen_scheduler(source: Path, target: Path, groups: Sequence[tuple[int, float]]) -> None:
    """Write a learning rate scheduler's state with one entry for each wide group.

    Args:
        source: the narrow scheduler.pt.
        target: the scheduler.pt to write.
        groups: for each wide group, the index of its narrow group and the factor of its learning rate.

    Raises:
        CheckpointError: the file is not the state of a scheduler.
    """
    torch.save(wide_scheduler(source, groups), target)


def wide_scheduler(source: Path, groups: Sequence[tuple[int, float]]) -> dict[str, Any]:
    """Return the state that `widen_scheduler` writes."""
    state = read_scheduler(source)
    narrow = len(state["base_lrs"])
    wide = dict(state)
    for key, value in state.items():
        if isinstance(value, list) and len(value) == narrow:
            rates = key in _RATES
            wide[key] = [value[index] * float(factor) if rates else value[index] for index, factor in groups]
    return wide


def read_scheduler(file: Path) -> dict[str, Any]:
    """Read the state of a learning rate scheduler.

    Raises:
        CheckpointError: the file is not the state of a scheduler.
    """
    try:
        check_archive(file)
        state: Any = torch.load(BytesIO(read_bytes(file)), weights_only=True)
        check_structure(state, file)
        len(state["base_lrs"])
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"cannot read the scheduler state `{file}`: {first_line(error)}",
            hint="only plain values are read, since a pickle could run code",
        ) from error
    return dict(state)

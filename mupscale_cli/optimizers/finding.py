"""Which optimizer state lies beside a checkpoint, of which format, and what goes along with it. No torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from mupscale_cli.checkpoints.reading import Checkpoint, require_own_file
from mupscale_cli.errors import CheckpointError
from mupscale_cli.optimizers.formats.base import OpenOptions, OptimizerSource, StateFormat
from mupscale_cli.optimizers.formats.distributed import Distributed
from mupscale_cli.optimizers.formats.safetensors import Safetensors
from mupscale_cli.optimizers.formats.torch import Torch

# In the order in which they are asked: the last two take any other file and any other folder, and say what is wrong.
FORMATS: tuple[StateFormat, ...] = (Safetensors(), Torch(), Distributed())
# What the Trainer of transformers resumes from beside it: position in the data and random numbers do not depend on
# the width, the scheduler does.
_COPIED = ("trainer_state.json", "rng_state*.pth", "scaler.pt")
SCHEDULER = "scheduler.pt"


def _first_state(is_there: Callable[[str], bool]) -> str | None:
    """The name of the first state whose marker is there."""
    markers = (marker for each in FORMATS for marker in each.markers)
    return next((marker.partition("/")[0] for marker in markers if is_there(marker)), None)


def find_optimizer(checkpoint: Checkpoint) -> Path | None:
    """The optimizer's state beside a checkpoint, if there is one."""
    path = checkpoint.path
    folder, prefix = (path.parent, f"{path.stem}.") if checkpoint.is_file else (path, "")
    name = _first_state(lambda marker: (folder / f"{prefix}{marker}").is_file())
    return None if name is None else folder / f"{prefix}{name}"


def companion_files(folder: Path) -> tuple[Path, ...]:
    """The files of a Trainer's checkpoint that a widened one takes along as they are.

    Raises:
        CheckpointError: one is a link out of the folder.
    """
    return tuple(sorted(require_own_file(file) for pattern in _COPIED for file in folder.glob(pattern)))


def state_name(names: Collection[str]) -> str | None:
    """The optimizer's state among the files of a directory: a file or a folder."""
    return _first_state(names.__contains__)


def state_names(names: Collection[str], state: str | None = None) -> tuple[str, ...]:
    """The files of a directory that the optimizer's state consists of, and what resuming needs beside it.

    Args:
        names: of all its files, relative to it.
        state: the state's own, if it is known.
    """
    own = state or state_name(names)
    if own is None:
        return ()
    patterns = {*_COPIED, SCHEDULER, *(pattern for each in FORMATS for pattern in each.files(own))}
    return tuple(sorted(name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)))


def open_optimizer(
    path: Path, config: Mapping[str, Any] | None, *, key: str | None = None, allow_pickle: bool = False
) -> OptimizerSource:
    """Read what an optimizer's state consists of, without its data.

    Args:
        path: a safetensors file or index, a file of torch.save, or a folder of torch.distributed.checkpoint.
        config: config.json, by which numbered parameters may be named.
        key: dotted keys that lead to the state in a file that holds more than it.
        allow_pickle: read folders of torch.distributed.checkpoint, whose metadata are a pickle.

    Raises:
        CheckpointError: it is not one of these, or not valid.
    """
    found = next((each for each in FORMATS if each.recognizes(path)), None)
    if found is None:
        raise CheckpointError(f"there is no optimizer's state at `{path}`")
    return found.open(OpenOptions(path, config, key, allow_pickle))

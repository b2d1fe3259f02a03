"""Find the optimizer state of a checkpoint, its format, and the files that belong to it. No torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from mupscale_cli.checkpoints.fates import Decision, kind_of
from mupscale_cli.checkpoints.layouts.opening import Trained
from mupscale_cli.checkpoints.layouts.table import LAYOUTS
from mupscale_cli.checkpoints.reading import Checkpoint
from mupscale_cli.errors import CheckpointError
from mupscale_cli.optimizers.formats.base import OpenOptions, OptimizerSource, StateFormat
from mupscale_cli.optimizers.formats.distributed import Distributed
from mupscale_cli.optimizers.formats.safetensors import Safetensors
from mupscale_cli.optimizers.formats.torch import Torch

# Tried in this order: the last two accept any other file and any other folder, and report what is wrong with it.
FORMATS: tuple[StateFormat, ...] = (Safetensors(), Torch(), Distributed())


def _first_state(exists: Callable[[str], bool]) -> str | None:
    """Return the name of the first state with an existing marker."""
    markers = (marker for each in FORMATS for marker in each.markers)
    return next((marker.partition("/")[0] for marker in markers if exists(marker)), None)


def find_optimizer(checkpoint: Checkpoint) -> Path | None:
    """Find the optimizer state with or next to the weights of a checkpoint; return None if there is none."""
    if checkpoint.trained is not None and checkpoint.trained.state is not None:
        return checkpoint.trained.path
    if checkpoint.trained is not None and checkpoint.trained.state_file is not None:
        return checkpoint.trained.state_file
    path = checkpoint.path
    folder, prefix = (path.parent, f"{path.stem}.") if checkpoint.is_file else (path, "")
    name = _first_state(lambda marker: (folder / f"{prefix}{marker}").exists())
    return None if name is None else folder / f"{prefix}{name}"


def state_name(names: Collection[str]) -> str | None:
    """Return the file or folder that holds the optimizer state, given the names of a directory's files."""
    return _first_state(names.__contains__)


def state_names(names: Collection[str], state: str | None = None) -> tuple[str, ...]:
    """Return the files of a directory that hold the optimizer state or that resuming needs with it.

    Args:
        names: all files, relative to the directory.
        state: the name of the state, if it is known.
    """
    name = state or state_name(names)
    return () if name is None else tuple(sorted(state_fates(names, Path(name))))


def state_files(names: Collection[str], state: str) -> tuple[str, ...]:
    """Return the files of a directory that hold a state of the given name."""
    patterns = [pattern for each in FORMATS for pattern in each.files(state)]
    return tuple(file for file in names if any(fnmatchcase(file, pattern) for pattern in patterns))


def state_fates(names: Collection[str], state: Path) -> dict[str, Decision]:
    """Decide what becomes of the files that hold an optimizer state, and of those that resuming needs with it.

    Args:
        names: all files of a checkpoint's directory, relative to it.
        state: the file or folder of the state in that directory; it may be on the Hub.
    """
    own = dict.fromkeys(state_files(names, state.name), Decision("widened", "optimizer state"))
    state_format = next((each for each in FORMATS if _is_marked(each, state.name) or each.recognizes(state)), None)
    if state_format is not None and not state_format.has_groups:
        return own
    kinds = ((name, kind_of(name)) for name in names)
    resumed = {name: kind.decide(with_state=True) for name, kind in kinds if kind is not None and kind.with_state}
    return {**resumed, **own}


def _is_marked(state_format: StateFormat, name: str) -> bool:
    return any(marker.partition("/")[0] == name for marker in state_format.markers)


def open_optimizer(
    path: Path,
    config: Mapping[str, Any] | None,
    *,
    key: str | None = None,
    kinds: Sequence[str] = (),
    trained: Trained | None = None,
) -> OptimizerSource:
    """Open optimizer state: read its structure without its data.

    Args:
        path: a safetensors file or index, a torch.save file, or a folder of torch.distributed.checkpoint.
        config: config.json, from which numbered parameters may get their names.
        key: dotted keys that lead to the state in a file that holds more.
        kinds: the optimizers that the user says the state belongs to; empty to let it tell.
        trained: the trainer's checkpoint of the weights.

    Raises:
        CheckpointError: the path has none of these formats, is invalid, or belongs to the model of another trainer.
    """
    weights = {} if trained is None else trained.shapes
    options = OpenOptions(path, config, key, tuple(kinds), weights)
    beside = None if trained is None else trained.layout.state_files
    if trained is not None and beside is not None:
        from mupscale_cli.optimizers.formats.tree_state import open_tree  # imports torch, as opening the weights did

        container = beside.container(path, {name: tensor.spec.shape for name, tensor in trained.tensors.items()})
        if container.recognizes(path):
            return open_tree(container, options)
    state_format = next((each for each in FORMATS if each.recognizes(path)), None)
    if state_format is None:
        raise CheckpointError(f"no optimizer state at `{path}`")
    opened = state_format.open(options)
    _require_own(opened, path)
    return opened


def _require_own(state: OptimizerSource, path: Path) -> None:
    """Refuse a state that numbers the parameters of a trainer's model, beside weights that are not that trainer's."""
    keys = set(state.content) if isinstance(state.content, Mapping) else set()
    for layout in LAYOUTS:
        marks = frozenset() if layout.state_files is None else layout.state_files.marks
        if marks and marks <= keys:
            raise CheckpointError(
                f"`{path}` numbers the parameters of {layout.title}'s own model, whose order these weights do not have",
                hint=f"widen the weights that {layout.title} saves under its own names; or omit the state with "
                "`--optimizer none`",
            )

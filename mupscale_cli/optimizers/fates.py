"""What becomes of every file of a checkpoint, optimizer state included. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mupscale_cli.checkpoints.fates import Decision, PlannedFile, kind_of
from mupscale_cli.checkpoints.reading import Checkpoint
from mupscale_cli.optimizers.finding import state_fates
from mupscale_cli.plan import Plan

_FRESH = "training starts with fresh moments"


def plan_files(source: Checkpoint, plan: Plan, state: Path | None) -> tuple[PlannedFile, ...]:
    """Plan what becomes of every file of a checkpoint.

    Args:
        source: the checkpoint.
        plan: the plan of its weights, config and other JSON files.
        state: the optimizer state to widen, wherever it is; None if there is none.

    Raises:
        CheckpointError: a file to copy is too large, or is a link that leads out of the directory.
    """
    with_state = {} if state is None else fates_with_state(source, state)
    rewritten = dict.fromkeys(plan.side_files, Decision("rewritten", "names units or sizes of the model"))
    return source.plan_files({**with_state, **rewritten})


def fates_with_state(source: Checkpoint, state: Path) -> dict[str, Decision]:
    """Decide what becomes of the files of an optimizer state, and of those that resuming needs, beside the weights."""
    return state_fates(source.sizes, state) if state.parent == source.path else {}


def why_no_state(files: Iterable[PlannedFile], optimizer: str | Path) -> str:
    """Say why no optimizer state is widened.

    Args:
        files: what becomes of the checkpoint's files.
        optimizer: the state that the options name: `none` or `auto`.
    """
    if optimizer == "none":
        return f"not widened, because of `--optimizer none`; {_FRESH}"
    for file in files:
        if (kind := kind_of(file.name)) is not None and kind.is_foreign_state:
            return f"not widened: `{file.name.partition('/')[0]}` is {file.reason}; {_FRESH}"
    return f"none found; {_FRESH}"

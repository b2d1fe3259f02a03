"""`mupscale.json` as `verify`, `hparams` and `push` read it: held against its type, and turned into what it stands for.

The record may come from anywhere. What passes here is as its type says, so nothing that reads it further checks again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mupscale_cli.checkpoints.reading import Checkpoint
from mupscale_cli.errors import CheckpointError
from mupscale_cli.plan.methods import Method, make_method
from mupscale_cli.plan.perturbation import Perturbation
from mupscale_cli.record import FORMAT_VERSION

if TYPE_CHECKING:
    from mupscale_cli.record.types import OptimizerState, Record


def read_record(checkpoint: Checkpoint, *, hint: str | None = None) -> Record:
    """Return the record of a checkpoint that mupscale wrote.

    Args:
        checkpoint: the checkpoint.
        hint: what to do if mupscale did not write it.

    Raises:
        CheckpointError: it has no record, or one of another format, or a damaged one.
    """
    if checkpoint.record is None:
        raise CheckpointError(
            f"`{checkpoint.path}` was not written by mupscale: it has no record of its widening", hint=hint
        )
    return check_record(checkpoint.record, checkpoint.path)


def check_record(content: Mapping[str, Any], file: Path) -> Record:
    """Return a record as what its type says, or refuse it.

    Args:
        content: of a mupscale.json.
        file: where it stands, for messages.

    Raises:
        CheckpointError: it has another format, or is damaged.
    """
    from mupscale_cli.record.schema import json_schema, mistake
    from mupscale_cli.record.types import Record

    version = content.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise CheckpointError(
            f"the record of `{file}` has format {version!r}, this mupscale reads {FORMAT_VERSION}",
            hint="upgrade mupscale, or widen the source again",
        )
    if problem := mistake(content, json_schema(Record)):
        raise CheckpointError(f"the record of `{file}` is damaged: {problem}", hint="widen the source again")
    return cast("Record", content)


def recorded_method(record: Record) -> tuple[Method, Perturbation | None]:
    """By which method a checkpoint was widened, and with which noise.

    Raises:
        PlanError: this version does not know the method.
    """
    method, noise = record["method"], record["perturbation"]
    return (
        make_method(method["name"], seed=method.get("seed", 0), shrink=method.get("shrink")),
        None if noise is None else Perturbation(noise["size"], noise["mode"], noise["scale"], noise["seed"]),
    )


def state_path(wide: Checkpoint, carried: OptimizerState) -> Path:
    """Where the optimizer's state of a widened checkpoint is.

    Args:
        wide: the checkpoint.
        carried: what its record says of the state.
    """
    name = carried["file"]
    return wide.path.parent / f"{wide.path.stem}.{name}" if wide.is_file else wide.path / name

"""Read and check mupscale.json for `verify`, `hparams` and `push`.

A record may come from an untrusted source. It is checked against its type once, here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mupscale_cli.checkpoints.reading import Checkpoint
from mupscale_cli.errors import CheckpointError, PlanError
from mupscale_cli.plan import Request, Size
from mupscale_cli.plan.blocks import BlockMap
from mupscale_cli.plan.methods import Method, make_method
from mupscale_cli.plan.perturbation import Perturbation
from mupscale_cli.record import FORMAT_VERSION
from mupscale_cli.text import listed

if TYPE_CHECKING:
    from mupscale_cli.record.types import Growth, OptimizerState, Record


def read_record(checkpoint: Checkpoint, *, hint: str | None = None) -> Record:
    """Return the record of a checkpoint that mupscale wrote.

    Args:
        checkpoint: the checkpoint.
        hint: hint of the error if mupscale did not write it.

    Raises:
        CheckpointError: the checkpoint has no record, or the record has another format version or is damaged.
    """
    if checkpoint.record is None:
        raise CheckpointError(
            f"`{checkpoint.path}` was not written by mupscale: it has no record of a widening",
            hint=hint or "name an output of `mupscale widen`",
        )
    return check_record(checkpoint.record, checkpoint.path)


def check_record(content: Mapping[str, Any], file: Path) -> Record:
    """Check a record against its type and return it.

    Args:
        content: content of mupscale.json.
        file: path of the checkpoint, for messages.

    Raises:
        CheckpointError: the record has another format version or is damaged.
    """
    from mupscale_cli.record.schema import json_schema, mistake
    from mupscale_cli.record.types import Record

    version = content.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise CheckpointError(
            f"the record of `{file}` has format version {version!r}; this mupscale reads version {FORMAT_VERSION}",
            hint="upgrade mupscale, or widen the source again",
        )
    if problem := mistake(content, json_schema(Record)):
        raise CheckpointError(f"the record of `{file}` is damaged: {problem}", hint="widen the source again")
    return cast("Record", content)


def adapter_growth(record: Record, name: str) -> Growth:
    """Return how the tensors of a widened adapter follow from those of the narrow one.

    Args:
        record: the record of the base model.
        name: the adapter's folder in the output, with or without `adapters/`; `.` for one beside the weights.

    Raises:
        PlanError: the record has no such adapter.
    """
    adapters = record["adapters"]
    found = adapters.get(name) or adapters.get(f"adapters/{name}")
    if found is None:
        known = listed(folder.removeprefix("adapters/") for folder in adapters)
        raise PlanError(f"no adapter `{name}` was widened with this model", hint=f"known: {known or 'none'}")
    return {
        "axes": record["axes"],
        "blocks": record["blocks"],
        "parameters": record["parameters"],
        "rules": found["rules"],
        "called": found["called"],
    }


def recorded_request(record: Record) -> Request:
    """Return the request that grows every axis to its recorded size."""
    axes = record["axes"].items()
    return Request(
        axes={name: Size(axis["wide_size"]) if axis["wide_size"] else axis["factor"] for name, axis in axes},
        blocks=recorded_blocks(record),
    )


def recorded_method(record: Record) -> tuple[Method, Perturbation | None]:
    """Return the method and the noise of a recorded widening.

    Raises:
        PlanError: this version of mupscale does not know the method.
    """
    method, noise = record["method"], record["perturbation"]
    return (
        make_method(
            method["name"],
            seed=method.get("seed", 0),
            fresh=method.get("fresh"),
            spread=method.get("spread"),
            shrink=method.get("shrink"),
        ),
        None
        if noise is None
        else Perturbation(noise["size"], noise["mode"], noise["scale"], noise["seed"], tuple(noise["on"])),
    )


def recorded_blocks(record: Record) -> dict[str, BlockMap]:
    """Return the blocks of every stack that became deeper."""
    return {name: BlockMap(tuple(blocks["sources"]), tuple(blocks["new"])) for name, blocks in record["blocks"].items()}


def state_path(wide: Checkpoint, carried: OptimizerState) -> Path:
    """Return the path of a widened checkpoint's optimizer state.

    Args:
        wide: the checkpoint.
        carried: the optimizer state in its record.
    """
    if (name := carried["file"]) is not None:
        return companion_path(wide, name)
    return wide.path if wide.trained is None else wide.trained.path


def companion_path(wide: Checkpoint, name: str) -> Path:
    """Return the path of a file beside the weights: `NAME.config.json` if the checkpoint is a single file."""
    return wide.path.parent / f"{wide.path.stem}.{name}" if wide.is_file else wide.path / name

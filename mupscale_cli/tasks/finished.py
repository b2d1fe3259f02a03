"""Tell whether an existing output is the one that a widening would write."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from mupscale_cli.checkpoints.adapters import adapter_digest
from mupscale_cli.checkpoints.digests import files_digest, segments_digest
from mupscale_cli.checkpoints.reading import Checkpoint, open_checkpoint
from mupscale_cli.plan import Plan
from mupscale_cli.record.changes import output_changed, source_changed
from mupscale_cli.record.reading import check_record, read_record, recorded_blocks, state_path
from mupscale_cli.tasks.adapters import adapter_folders
from mupscale_cli.tasks.options import WidenOptions
from mupscale_cli.tasks.source import Source
from mupscale_cli.text import growth_factor

if TYPE_CHECKING:
    from mupscale_cli.record.types import OptimizerState, Record


def reason_to_write(
    options: WidenOptions, source: Source, plan: Plan, target: Path, made: Mapping[Path, Plan] = MappingProxyType({})
) -> str | None:
    """Return why a widening has to write its output; None if its record and headers show that it is complete.

    Args:
        options: how it widens.
        source: the narrow checkpoint.
        plan: its plan.
        target: the output.
        made: plans of the outputs that will be written before, by their resolved paths.

    Raises:
        CheckpointError: the existing output or its record is damaged.
    """
    if not target.exists():
        return "does not exist yet"
    if target.is_symlink():
        return "it is a link, which is never followed"
    if source.checkpoint.path.resolve() in made:
        return "its input is rewritten"
    output = open_checkpoint(target)
    if output.record is None:
        return "mupscale did not write it"
    return _difference(options, source, plan, output, check_record(output.record, target))


def _difference(options: WidenOptions, source: Source, plan: Plan, output: Checkpoint, record: Record) -> str | None:
    """Return how a finished output differs from the one that a widening would write; None if it does not."""
    factors = {axis.name: growth_factor(axis.size, axis.wide_size, axis.factor) for axis in plan.axes}
    recorded_factors = {
        name: growth_factor(axis["size"], axis["wide_size"], axis["factor"]) for name, axis in record["axes"].items()
    }
    if recorded_factors != factors:
        return f"it was widened by {_factors_text(recorded_factors)}, not by {_factors_text(factors)}"
    wanted = {
        "blocks": dict(plan.blocks),
        "recipe": plan.recipe.digest,
        "tie": plan.tie,
        "method": plan.method.as_record(),
        "noise": plan.perturbation.as_record() if plan.perturbation else None,
    }
    recorded = {
        "blocks": recorded_blocks(record),
        "recipe": record["recipe"]["sha256"],
        "tie": record["tie"],
        "method": record["method"],
        "noise": record["perturbation"],
    }
    for name, value in wanted.items():
        if recorded[name] != value:
            return f"its {name} differ{'' if name.endswith('s') else 's'}"
    if source.remote is not None:
        origin = record["source"]
        if (origin.get("repo"), origin.get("revision")) != (source.remote.id.repo, source.remote.commit):
            return f"it was not made from {source.remote.id} at {source.remote.commit}"
    if {spec.name: spec for spec in output.specs} != {tensor.target.name: tensor.target for tensor in plan.tensors}:
        return "its tensors differ"
    if output.config != plan.config:
        return "its config differs"
    is_split = not output.is_file and output.trained is None
    if is_split and {file.name for file in output.files} != {shard.file for shard in plan.shards}:
        return "it is split into different files"
    folders = adapter_folders(source.checkpoint, options.adapter)
    if {name: adapter_digest(path) for name, path in folders.items()} != {
        name: adapter["source"]["digest"] for name, adapter in record["adapters"].items()
    }:
        return "its adapters differ"
    return _state_difference(options, source, output, record)


def _factors_text(factors: Mapping[str, str]) -> str:
    return " ".join(f"{name}={factor}" for name, factor in factors.items() if factor != "x1")


def _state_difference(options: WidenOptions, source: Source, output: Checkpoint, record: Record) -> str | None:
    carried = record["optimizer_state"]
    wanted = source.find_state(options.state)
    if (carried is None) != (wanted is None):
        return "it has no optimizer state" if carried is None else "it has an optimizer state"
    if carried is None or wanted is None:
        return None
    state = options.state
    key = state.key or (carried.get("key") if carried["file"] is None else None)
    if (carried["policy"], carried.get("key"), carried.get("named", [])) != (state.policy, key, list(state.kinds)):
        return "its optimizer state was widened with other options"
    if source.remote is None and _modified_at(Path(wanted)) > max(file.stat().st_mtime for file in output.files):
        return f"the optimizer state `{wanted}` is newer"
    return None


def _modified_at(path: Path) -> float:
    """Return when the newest file of an optimizer state was written, in seconds since the epoch."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return max((file.stat().st_mtime for file in files), default=0.0)


def find_changed_file(options: WidenOptions, source: Source, output: Checkpoint) -> str | None:
    """Return which file of the source or of the output has changed since the widening; None if none has.

    A commit of the Hub cannot change and is not hashed.

    Raises:
        CheckpointError: a file cannot be read.
    """
    record = read_record(output)
    if source.remote is None and (name := source_changed(record, source.checkpoint)):
        return f"`{name}` of `{source.checkpoint.display_name}` has changed"
    if name := output_changed(record, output):
        return f"its `{name}` has changed"
    return _state_changed(options, source, output, record["optimizer_state"])


def _state_changed(
    options: WidenOptions, source: Source, output: Checkpoint, carried: OptimizerState | None
) -> str | None:
    if carried is None:
        return None
    from mupscale_cli.optimizers.in_kind import open_state  # imports torch

    path = state_path(output, carried)
    key = options.state.key
    if not path.exists():
        return f"its `{path.name}` is gone"
    written = open_state(output, path, key)
    if files_digest(written.files, segments_digest) != carried["digest"]:
        return f"its `{path.name}` has changed"
    before = options.state.find(source.checkpoint) if source.remote is None else None
    if before is not None:
        state = open_state(source.checkpoint, before, key)
        if files_digest(state.files) != carried["source_digest"]:
            return f"the optimizer state `{before}` has changed"
    return None

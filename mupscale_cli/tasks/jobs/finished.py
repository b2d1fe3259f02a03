"""Tell whether an existing output or verification is the one that a step would make."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mupscale_cli.checkpoints.adapters import adapter_digest
from mupscale_cli.checkpoints.digests import files_digest, segments_digest
from mupscale_cli.checkpoints.reading import Checkpoint, open_checkpoint
from mupscale_cli.optimizers.in_kind import open_state
from mupscale_cli.plan import Plan
from mupscale_cli.record.changes import output_changed, source_changed
from mupscale_cli.record.reading import check_record, read_record, recorded_blocks, state_path
from mupscale_cli.tasks.adapters import adapter_folders
from mupscale_cli.tasks.jobs.steps import VerifyStep, WidenStep
from mupscale_cli.tasks.source import Source
from mupscale_cli.text import growth_factor

if TYPE_CHECKING:
    from mupscale_cli.record.types import OptimizerState, Record


def reason_to_write(step: WidenStep, source: Source, plan: Plan, target: Path, made: Mapping[Path, Plan]) -> str | None:
    """Return why a step has to write its output; None if its record and headers show that it is complete.

    Args:
        step: the step.
        source: the narrow checkpoint.
        plan: the plan of the step.
        target: the output.
        made: plans of the outputs that earlier steps will write, by their resolved paths.

    Raises:
        CheckpointError: the existing output or its record is damaged.
    """
    if not target.exists():
        return "does not exist yet"
    if source.checkpoint.path.resolve() in made:
        return "its input is rewritten"
    output = open_checkpoint(target)
    if output.record is None:
        return "mupscale did not write it"
    return _difference(step, source, plan, output, check_record(output.record, target))


def _difference(step: WidenStep, source: Source, plan: Plan, output: Checkpoint, record: Record) -> str | None:
    """Return how a finished output differs from the one that a step would write; None if it does not."""
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
    is_split = not output.is_file and output.trained is None
    if is_split and {file.name for file in output.files} != {shard.file for shard in plan.shards}:
        return "it is split into different files"
    folders = adapter_folders(source.checkpoint, step.options.adapter)
    if {name: adapter_digest(path) for name, path in folders.items()} != {
        name: adapter["source"]["digest"] for name, adapter in record["adapters"].items()
    }:
        return "its adapters differ"
    return _state_difference(step, source, output, record)


def _factors_text(factors: Mapping[str, str]) -> str:
    return " ".join(f"{name}={factor}" for name, factor in factors.items() if factor != "x1")


def _state_difference(step: WidenStep, source: Source, output: Checkpoint, record: Record) -> str | None:
    carried = record["optimizer_state"]
    wanted = source.find_state(step.options.state)
    if (carried is None) != (wanted is None):
        return "it has no optimizer state" if carried is None else "it has an optimizer state"
    if carried is None or wanted is None:
        return None
    options = step.options.state
    key = options.key or (carried.get("key") if carried["file"] is None else None)
    if (carried["policy"], carried.get("key"), carried.get("named", [])) != (options.policy, key, list(options.kinds)):
        return "its optimizer state was widened with other options"
    if source.remote is None and _modified_at(Path(wanted)) > max(file.stat().st_mtime for file in output.files):
        return f"the optimizer state `{wanted}` is newer"
    return None


def _modified_at(path: Path) -> float:
    """Return when the newest file of an optimizer state was written, in seconds since the epoch."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return max((file.stat().st_mtime for file in files), default=0.0)


def find_changed_file(step: WidenStep, source: Source, output: Checkpoint) -> str | None:
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
    return _state_changed(step, source, output, record["optimizer_state"])


def _state_changed(step: WidenStep, source: Source, output: Checkpoint, carried: OptimizerState | None) -> str | None:
    if carried is None:
        return None
    path = state_path(output, carried)
    key = step.options.state.key
    if not path.exists():
        return f"its `{path.name}` is gone"
    written = open_state(output, path, key)
    if files_digest(written.files, segments_digest) != carried["digest"]:
        return f"its `{path.name}` has changed"
    before = step.options.state.find(source.checkpoint) if source.remote is None else None
    if before is not None:
        state = open_state(source.checkpoint, before, key)
        if files_digest(state.files) != carried["source_digest"]:
            return f"the optimizer state `{before}` has changed"
    return None


def is_recorded(step: VerifyStep, output: Checkpoint) -> bool:
    """Return whether the record contains a successful verification with the options of this step."""
    verification = check_record(output.record, output.path)["verification"] if output.record else None
    if verification is None:
        return False
    is_same = verification.get("options") == step.options.as_record()
    return is_same and verification["agrees"] and not verification["skipped"]


def is_still_verified(step: VerifyStep) -> bool:
    """Return whether the record contains this verification and no file has changed since."""
    output = open_checkpoint(Path(step.wide))
    if not is_recorded(step, output):
        return False
    record = read_record(output)
    if output_changed(record, output):
        return False
    origin = record["source"]
    if step.options.narrow is not None:
        narrow = Path(step.options.narrow)
    elif "path" in origin:
        narrow = output.path.resolve().parent / origin["path"]
    else:
        return True  # a commit of the Hub
    return narrow.exists() and source_changed(record, open_checkpoint(narrow)) is None

"""What stands there already: whether an output or a verification is what a step asks for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mupscale_cli.checkpoints.digests import files_digest, segments_digest
from mupscale_cli.checkpoints.reading import Checkpoint, open_checkpoint
from mupscale_cli.optimizers.finding import open_optimizer
from mupscale_cli.plan import Plan
from mupscale_cli.record.changes import output_changed, source_changed
from mupscale_cli.record.reading import check_record, read_record, state_path
from mupscale_cli.tasks.jobs.steps import VerifyStep, WidenStep
from mupscale_cli.tasks.source import Source

if TYPE_CHECKING:
    from mupscale_cli.record.types import OptimizerState, Record


def reason_to_write(step: WidenStep, source: Source, plan: Plan, target: Path, made: Mapping[Path, Plan]) -> str | None:
    """Why the output is not there, complete and as asked, by its record and headers; None if it is."""
    if not target.exists():
        return "not there yet"
    if source.checkpoint.path.resolve() in made:
        return "its input is made anew"
    found = open_checkpoint(target)
    if found.record is None:
        return "mupscale did not write it"
    return _difference(step, source, plan, found, check_record(found.record, target))


def _difference(step: WidenStep, source: Source, plan: Plan, found: Checkpoint, record: Record) -> str | None:
    """What a finished output was made with that this step does not ask for, or the other way round."""
    factors = {axis.name: axis.factor for axis in plan.axes}
    noted = {name: axis["factor"] for name, axis in record["axes"].items()}
    if noted != factors:
        return f"it was widened by {_factors_text(noted)}, not by {_factors_text(factors)}"
    wanted = {
        "recipe": plan.recipe.digest,
        "tie": plan.tie,
        "method": plan.method.as_record(),
        "noise": plan.perturbation.as_record() if plan.perturbation else None,
    }
    has = {
        "recipe": record["recipe"]["sha256"],
        "tie": record["tie"],
        "method": record["method"],
        "noise": record["perturbation"],
    }
    for name, value in wanted.items():
        if has[name] != value:
            return f"its {name} is another one"
    if source.remote is not None:
        origin = record["source"]
        if (origin.get("repo"), origin.get("revision")) != (source.remote.id.repo, source.remote.commit):
            return f"it was made from another source than {source.remote.id} at {source.remote.commit}"
    if {spec.name: spec for spec in found.specs} != {tensor.target.name: tensor.target for tensor in plan.tensors}:
        return "it has other tensors"
    if not found.is_file and {file.name for file in found.files} != {shard.file for shard in plan.shards}:
        return "its files are of another size"
    return _state_difference(step, source, found, record)


def _factors_text(factors: Mapping[str, int]) -> str:
    return " ".join(f"{name}=x{factor}" for name, factor in factors.items() if factor > 1)


def _state_difference(step: WidenStep, source: Source, found: Checkpoint, record: Record) -> str | None:
    carried = record["optimizer_state"]
    wanted = source.find_state(step.options.state)
    if (carried is None) != (wanted is None):
        return "it has no optimizer state" if carried is None else "it has an optimizer state"
    if carried is None or wanted is None:
        return None
    if (carried["policy"], carried.get("key")) != (step.options.state.policy, step.options.state.key):
        return "its optimizer state was carried in another way"
    if source.remote is None and _age(Path(wanted)) > max(file.stat().st_mtime for file in found.files):
        return f"the optimizer's state `{wanted}` is newer"
    return None


def _age(path: Path) -> float:
    """When the youngest file of a state was written."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return max((file.stat().st_mtime for file in files), default=0.0)


def find_changed_file(step: WidenStep, source: Source, found: Checkpoint) -> str | None:
    """Which file of the source or of the output is not what it was; of a commit of the Hub nothing changes."""
    record = read_record(found)
    if source.remote is None and (name := source_changed(record, source.checkpoint)):
        return f"`{name}` of `{source.checkpoint.display_name}` has changed"
    if name := output_changed(record, found):
        return f"its `{name}` has changed"
    return _state_changed(step, source, found, record["optimizer_state"])


def _state_changed(step: WidenStep, source: Source, found: Checkpoint, carried: OptimizerState | None) -> str | None:
    if carried is None:
        return None
    path = state_path(found, carried)
    key, allow_pickle = step.options.state.key, step.options.state.allow_pickle
    if not path.exists():
        return f"its `{path.name}` is gone"
    written = open_optimizer(path, found.config, key=key, allow_pickle=allow_pickle)
    if files_digest(written.files, segments_digest) != carried["digest"]:
        return f"its `{path.name}` has changed"
    before = step.options.state.find(source.checkpoint) if source.remote is None else None
    if before is not None:
        state = open_optimizer(before, source.checkpoint.config, key=key, allow_pickle=allow_pickle)
        if files_digest(state.files) != carried["source_digest"]:
            return f"the optimizer's state `{before}` has changed"
    return None


def is_recorded(step: VerifyStep, found: Checkpoint) -> bool:
    """Whether the record says that this very verification was done, and went well."""
    noted = check_record(found.record, found.path)["verification"] if found.record else None
    if step.weights or noted is None:
        return False
    return noted["agrees"] and noted.get("options") == step.options.as_record()


def is_still_verified(step: VerifyStep) -> bool:
    """Whether the record has this verification, and neither side has changed since."""
    found = open_checkpoint(Path(step.wide))
    if not is_recorded(step, found):
        return False
    record = read_record(found)
    if output_changed(record, found):
        return False
    origin = record["source"]
    if step.options.narrow is not None:
        narrow = Path(step.options.narrow)
    elif "path" in origin:
        narrow = found.path.resolve().parent / origin["path"]
    else:
        return True  # a commit of the Hub
    return narrow.exists() and source_changed(record, open_checkpoint(narrow)) is None

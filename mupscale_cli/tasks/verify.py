"""Verify a widened checkpoint: find its source, plan the widening again and compare, as `mupscale verify` does."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mupscale_cli.architecture.loading import read_draft
from mupscale_cli.architecture.types import Recipe
from mupscale_cli.checkpoints.digests import files_digest
from mupscale_cli.checkpoints.fates import RECORD
from mupscale_cli.checkpoints.header import METADATA_KEY, read_header
from mupscale_cli.checkpoints.output_files import replace_json
from mupscale_cli.checkpoints.reading import TORCH_SUFFIXES, Checkpoint, open_checkpoint
from mupscale_cli.engine.events import SILENT, Events
from mupscale_cli.errors import CheckpointError, MupscaleError
from mupscale_cli.optimizers.carrying import CarriedState, plan_carried_state
from mupscale_cli.optimizers.finding import find_optimizer
from mupscale_cli.optimizers.in_kind import open_state, plan_in_kind
from mupscale_cli.optimizers.options import StateOptions
from mupscale_cli.optimizers.tree import OptimizerTree
from mupscale_cli.plan import DEFAULT_SHARD_BYTES, Plan, make_plan, with_noise
from mupscale_cli.record.changes import source_changed, source_resized
from mupscale_cli.record.reading import read_record, recorded_method, recorded_request, state_path
from mupscale_cli.tasks.adapters import PlannedAdapter, plan_recorded_adapters
from mupscale_cli.tasks.modules import with_modules
from mupscale_cli.tasks.options import called_with
from mupscale_cli.tasks.planning import choose_recipe, in_kind
from mupscale_cli.tasks.reading import Reading
from mupscale_cli.tasks.source import find_source
from mupscale_cli.verification.comparing import verify_checkpoints
from mupscale_cli.verification.config import check_config
from mupscale_cli.verification.files import check_files
from mupscale_cli.verification.options import VerifyOptions
from mupscale_cli.verification.result import FilesCheck, TensorsCheck, TrainingVerification, Verification
from mupscale_cli.verification.steps import train_checkpoints
from mupscale_cli.verification.weights import check_state, check_weights

if TYPE_CHECKING:
    from mupscale_cli.record.types import OptimizerState, Record

_log = logging.getLogger(__name__)  # `-v` shows it
NO_STATE = Path("none")  # given as the path of the optimizer state: skip it
_OTHER_SOURCE = "compare with the original source, which may have moved or changed, or widen again"


@dataclass(frozen=True)
class VerifyCall(VerifyOptions):
    """The arguments of `verify`: what to check, and how to run.

    Attributes:
        events: receive the progress.
        processes: number of local processes that compare files, as for `widen`.
    """

    _: KW_ONLY
    events: Events = SILENT
    processes: int | None = 1


@called_with(VerifyCall)
def verify(wide: str | Path, call: VerifyCall) -> Verification:
    """Check that a widened checkpoint is what its source, the recipe and the factors make of it, and computes the same.

    Everything is planned again from the source; of the record, only the names of source and recipe, factors and options
    are used. Store the result in the directory's mupscale.json if that is writable.

    Args:
        wide: a checkpoint written by mupscale.
        call: the fields of `VerifyOptions` and `VerifyCall`, as separate arguments.

    Returns:
        What was found. If several parts are verified and the models cannot run, `skipped` says why.

    Raises:
        MupscaleError: a checkpoint is missing, or the source is not the recorded one.

    Example:
        >>> verify("tiny-x4", dtype="float64").agrees  # doctest: +SKIP
        True
    """
    parts = call.parts
    widening = replan_widening(wide, call.narrow, call.recipe, with_state="files" in parts or call.steps > 0)
    narrow, target, plan = widening.narrow, widening.wide, widening.plan
    state = _plan_state(widening, call) if "files" in parts else None  # a missing one is reported before the work
    here = not widening.is_published  # the narrow adapters of a published model are elsewhere
    adapters = tuple(plan_recorded_adapters(narrow, target, plan, widening.record)) if here else ()
    found = Verification()
    if "config" in parts:
        configs = (check_config(adapter.plan.config, wide.config) for adapter, wide in adapters)
        found = replace(found, config=sum(configs, check_config(plan.config, target.config)))
    if "weights" in parts:
        call.events.phase("comparing weights", plan.num_bytes + sum(each.plan.num_bytes for each, _ in adapters))
        compared = ((narrow, target, plan), *((each.source, wide, each.plan) for each, wide in adapters))
        checks = (check_weights(*three, call.events.advance, call.processes) for three in compared)
        found = replace(found, weights=sum(checks, TensorsCheck(0, 0, ())))
    if "files" in parts:
        planned = tuple(adapter for adapter, _ in adapters)
        found = replace(found, files=_check_files(widening, state, planned, call))
    if "function" in parts:  # last: processes must be forked before torch starts threads
        call.events.phase("running both models", 0)
        found = _run_models(widening, found, call)
    if call.steps:
        found = replace(found, training=_train(widening, call))
    if not found.agrees or not call.only or "function" in parts:
        _store_result(target, {**widening.record, "verification": {**found.as_record(), "options": call.as_record()}})
    return found


def _run_models(widening: RecordedWidening, found: Verification, call: VerifyCall) -> Verification:
    """Add the comparison of what both models compute, or why there is none.

    Raises:
        MupscaleError: the models cannot run, and no other part is verified.
    """
    try:
        function = verify_checkpoints(widening.narrow, widening.wide, widening.plan, call, is_thorough=True)
        return replace(found, function=function)
    except MupscaleError as error:
        if call.parts == ("function",):
            raise
        return replace(found, skipped={"function": f"{error.message}; {error.hint}" if error.hint else error.message})


def _train(widening: RecordedWidening, call: VerifyCall) -> TrainingVerification:
    """Take optimizer steps on both models, from the widened state if there is one."""
    states = _states(widening, call.optimizer)
    training = train_checkpoints(widening.narrow, widening.wide, widening.plan, call, *states)
    carried = widening.record["optimizer_state"]
    policy = carried["policy"] if carried else "copy"
    if policy == "copy":
        return training
    return replace(training, start=f"a fresh start (the state was written with `{policy}` and is not used)")


def _plan_state(widening: RecordedWidening, call: VerifyCall) -> CarriedState | str | None:
    """Plan the optimizer state of the wide model again.

    Returns:
        The planned state; or, as text, why to skip it; or None if no state was widened.

    Raises:
        CheckpointError: the narrow state is missing, or not the one that was widened.
    """
    narrow, wide, carried = widening.narrow, widening.wide, widening.record["optimizer_state"]
    if carried is None:
        return None
    if call.optimizer == NO_STATE:
        return "disabled by `--optimizer none`"
    if widening.is_published and not state_path(wide, carried).exists():
        return "it was not published with the weights"
    path = call.optimizer or _recorded_state(narrow, carried)
    if path is None:
        raise _no_narrow_state(narrow, carried)
    options = StateOptions(path, carried["policy"], carried.get("key"), tuple(carried["kinds"]))
    state = _planned_state(options, narrow, widening.plan)
    assert state is not None
    if carried["source_digest"] != files_digest(state.source.files):
        raise CheckpointError(
            f"`{path}` is not the optimizer state that was widened with `{wide.path}`", hint=_OTHER_SOURCE
        )
    return state


def _recorded_state(narrow: Checkpoint, carried: OptimizerState) -> Path | None:
    """Return the path of the narrow state, which is in the weights' own container if the wide one is."""
    is_inside = carried["file"] is None and narrow.trained is not None
    return narrow.trained.path if is_inside and narrow.trained else find_optimizer(narrow)


def _planned_state(options: StateOptions, narrow: Checkpoint, plan: Plan) -> CarriedState | None:
    """Plan an optimizer state with or beside the weights."""
    if narrow.trained is not None and Path(options.optimizer) == narrow.trained.path:
        return plan_in_kind(narrow, narrow.trained, plan, options).carried
    return plan_carried_state(options, narrow, plan, DEFAULT_SHARD_BYTES)


def _check_files(
    widening: RecordedWidening, state: CarriedState | str | None, adapters: Sequence[PlannedAdapter], call: VerifyCall
) -> FilesCheck:
    """Compare all files but weights and config with those that source and plan give."""
    wide, carried = widening.wide, widening.record["optimizer_state"]
    planned = state if isinstance(state, CarriedState) else None
    plans = {adapter.folder: adapter.plan for adapter in adapters}
    copied = {name: file for adapter in adapters for name, file in adapter.copied.items()}
    found = check_files(widening.narrow, wide, widening.plan, widening.record, planned, plans, copied)
    if planned is None or carried is None:
        return replace(found, state_skipped=state if isinstance(state, str) else None)
    path = state_path(wide, carried)
    if not path.exists():
        return replace(found, state=TensorsCheck(0, 0, (f"`{path.name}` is missing",)))
    stored = open_state(wide, path, carried.get("key"))
    call.events.phase("comparing optimizer state", planned.state.num_bytes)
    return replace(found, state=check_state(planned.state, stored, call.events.advance, call.processes))


@dataclass(frozen=True)
class RecordedWidening:
    """A finished widening, planned again from its record.

    Attributes:
        wide: the widened checkpoint.
        narrow: its source.
        plan: the plan, with the measured size of the noise.
        record: the record of the widening.
        is_published: whether the widened checkpoint came from the Hub.
    """

    wide: Checkpoint
    narrow: Checkpoint
    plan: Plan
    record: Record
    is_published: bool = False


def replan_widening(
    wide: str | Path,
    narrow: str | Path | None = None,
    recipe: str | Path | None = None,
    *,
    with_state: bool = False,
    hashed: bool = True,
) -> RecordedWidening:
    """Find both checkpoints of a widening and plan it again.

    Args:
        wide: a checkpoint written by mupscale.
        narrow: its source. Default: the source named in its record.
        recipe: name or file of the recipe. Default: the recipe named in the record.
        with_state: also download the optimizer state of a model on the Hub.
        hashed: hash the whole source to make sure that it has not changed, instead of comparing sizes only.

    Raises:
        MupscaleError: a checkpoint is missing or differs from its record.
    """
    found = find_source(wide, with_state=with_state)
    target = found.checkpoint
    record = read_record(target)
    with_state = with_state and record["optimizer_state"] is not None
    source = (
        find_source(narrow, _recorded_reading(record), with_state=with_state).checkpoint
        if narrow is not None
        else _recorded_source(target, record, with_state=with_state)
    )
    if changed := (source_changed if hashed else source_resized)(record, source):
        raise _other_source(changed, source, wide)
    chosen = choose_recipe(source, recipe or _recorded_recipe(target, record))
    method, perturbation = recorded_method(record)
    plan = make_plan(
        chosen,
        source.specs,
        source.config,
        recorded_request(record),
        tie=record["tie"],
        clean_names=record.get("clean_names", False),
        method=method,
        perturbation=perturbation,
        side_files=source.read_side_files(chosen.side_files),
    )
    plan = with_modules(in_kind(with_noise(plan, record["noise"]), source), source)
    return RecordedWidening(target, source, plan, record, found.hub is not None)


def _other_source(changed: str, source: Checkpoint, wide: str | Path) -> CheckpointError:
    return CheckpointError(
        f"`{changed}` of `{source.path}` is not the file that `{wide}` was widened from", hint=_OTHER_SOURCE
    )


def _no_narrow_state(narrow: Checkpoint, carried: OptimizerState) -> CheckpointError:
    return CheckpointError(
        f"no optimizer state `{carried['file']}` next to `{narrow.path}`",
        hint="name it with `--optimizer PATH`, or skip it with `--optimizer none`",
    )


def _recorded_recipe(target: Checkpoint, record: Record) -> str | Path | Recipe:
    """Return the recipe if it was drafted, or else its name or its file."""
    if (text := record["recipe"].get("text")) is not None:
        return read_draft(text, record["recipe"]["name"])
    file = record["recipe"].get("file")
    return target.path.resolve().parent / file if file else record["recipe"]["name"]


def _states(widening: RecordedWidening, optimizer: Path | None) -> tuple[OptimizerTree | None, OptimizerTree | None]:
    """Load the optimizer states of both checkpoints; None for both if none was copied."""
    source, target, carried = widening.narrow, widening.wide, widening.record["optimizer_state"]
    if not carried or carried["policy"] != "copy" or optimizer == NO_STATE:
        return None, None
    before = optimizer or _recorded_state(source, carried)
    after = state_path(target, carried)
    if before is None:
        raise _no_narrow_state(source, carried)
    return (
        open_state(source, before, carried.get("key"), carried["kinds"]).load(),
        open_state(target, after, carried.get("key"), carried["kinds"]).load(),
    )


def _store_result(target: Checkpoint, record: dict[str, Any]) -> None:
    """Write the record to mupscale.json if that is writable; never change the header of a single file."""
    file = target.path / RECORD
    if not target.is_file and not file.is_symlink() and os.access(file, os.W_OK) and os.access(target.path, os.W_OK):
        replace_json(file, record)


def _recorded_reading(record: Record) -> Reading:
    """Return what the user said about the source."""
    source = record["source"]
    return Reading(source.get("config"), **source.get("form", {}))


def _recorded_source(target: Checkpoint, record: Record, *, with_state: bool) -> Checkpoint:
    where, reading = record["source"], _recorded_reading(record)
    if "repo" in where:
        return find_source(f"{where['repo']}@{where['revision']}", reading, with_state=with_state).checkpoint
    path = target.path.resolve().parent / where["path"]
    _log.info("source: %s (named in the record of %s)", path, target.path)
    if not path.exists():
        raise CheckpointError(
            f"the source of `{target.path}` is not at `{path}`, and everything is compared with it",
            hint="name it: `mupscale verify NARROW WIDE`",
        )
    return open_checkpoint(path, reading.choice).with_settings(reading.settings or {})


def newest_widened(folder: Path) -> Path:
    """Return the checkpoint in a folder that mupscale wrote last.

    Raises:
        CheckpointError: the folder has no widened checkpoint.
    """
    widened = [file.parent for file in folder.glob(f"*/{RECORD}")]
    for file in folder.glob(f"*.{RECORD}"):
        stem = file.name.removesuffix(f".{RECORD}")
        widened += (path for path in folder.glob(f"{glob.escape(stem)}.*") if path.suffix in TORCH_SUFFIXES)
    for file in folder.glob("*.safetensors"):
        try:
            if METADATA_KEY in read_header(file).metadata:
                widened.append(file)
        except CheckpointError:
            continue  # ignore broken files
    if not widened:
        raise CheckpointError("no widened checkpoint in this folder", hint="name it: `mupscale verify WIDE`")
    return max(widened, key=_written_at)


def _written_at(path: Path) -> float:
    """Return when the weights were written, in seconds since the epoch; `verify` rewrites only the record."""
    inside = (file for file in path.rglob("*") if file.is_file() and file.name != RECORD)
    return max((file.stat().st_mtime for file in (inside if path.is_dir() else (path,))), default=0.0)

"""Verify a widened checkpoint: find its source, plan the widening again and compare, as `mupscale verify` does."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mupscale_cli.checkpoints.digests import files_digest
from mupscale_cli.checkpoints.fates import RECORD
from mupscale_cli.checkpoints.output_files import replace_json
from mupscale_cli.checkpoints.reading import Checkpoint
from mupscale_cli.engine.events import SILENT, Events
from mupscale_cli.errors import CheckpointError, MupscaleError
from mupscale_cli.optimizers.carrying import CarriedState, plan_carried_state
from mupscale_cli.optimizers.finding import find_optimizer
from mupscale_cli.optimizers.in_kind import open_state, plan_in_kind
from mupscale_cli.optimizers.options import StateOptions
from mupscale_cli.optimizers.tree import OptimizerTree
from mupscale_cli.plan import DEFAULT_SHARD_BYTES, Plan
from mupscale_cli.record.reading import state_path
from mupscale_cli.tasks.adapters import PlannedAdapter, plan_recorded_adapters
from mupscale_cli.tasks.effects import refuse_idle_fields
from mupscale_cli.tasks.options import called_with
from mupscale_cli.tasks.recorded import OTHER_SOURCE, RecordedWidening, replan_widening
from mupscale_cli.verification.comparing import verify_checkpoints
from mupscale_cli.verification.config import check_config
from mupscale_cli.verification.early import require_startable
from mupscale_cli.verification.files import check_files
from mupscale_cli.verification.options import VerifyOptions
from mupscale_cli.verification.result import FilesCheck, TensorsCheck, TrainingVerification, Verification
from mupscale_cli.verification.steps import train_checkpoints
from mupscale_cli.verification.weights import check_state, check_weights

if TYPE_CHECKING:
    from mupscale_cli.record.types import OptimizerState

NO_STATE = Path("none")  # given as the path of the optimizer state: skip it


@dataclass(frozen=True)
class VerifyCall(VerifyOptions):
    """The arguments of `verify`: what to check, and how to run.

    Attributes:
        events: receive the progress.
        processes: number of local processes that compare files, as for `widen`.
        store: whether to keep the result in the record of the wide checkpoint.
    """

    _: KW_ONLY
    events: Events = SILENT
    processes: int | None = 1
    store: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_idle_fields("verify", self)


@called_with(VerifyCall)
def verify(wide: str | Path | RecordedWidening, call: VerifyCall) -> Verification:
    """Check that a widened checkpoint is what its source, the recipe and the factors make of it, and computes the same.

    Everything is planned again from the source; of the record, only the names of source and recipe, factors and options
    are used. Store the result in the directory's mupscale.json if that is writable, unless `store` is false.

    Args:
        wide: a checkpoint written by mupscale; or its widening, planned again.
        call: the fields of `VerifyOptions` and `VerifyCall`, as separate arguments.

    Returns:
        What was found. If several parts are verified and the models cannot run, `skipped` says why.

    Raises:
        MupscaleError: a checkpoint is missing, or the source is not the recorded one.

    Example:
        >>> verify("tiny-x4", dtype="float64").agrees  # doctest: +SKIP
        True
    """
    require_startable(call)
    parts = call.parts
    widening = wide
    if not isinstance(widening, RecordedWidening):
        widening = replan_widening(widening, call.narrow, call.recipe, with_state=call.reads_state)
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
        call.events.phase("verifying", 0)
        found = _run_models(widening, found, call)
    if call.steps:
        found = replace(found, training=_train(widening, call))
    if call.store and (not found.agrees or not call.only or "function" in parts):
        _store_result(target, {**widening.record, "verification": {**found.as_record(), "options": call.as_record()}})
    return found


def _run_models(widening: RecordedWidening, found: Verification, call: VerifyCall) -> Verification:
    """Add the comparison of what both models compute, or why there is none.

    Raises:
        MupscaleError: the models cannot run, and no other part is verified.
    """
    try:
        function = verify_checkpoints(
            widening.narrow, widening.wide, widening.plan, call, is_thorough=True, events=call.events
        )
        return replace(found, function=function)
    except MupscaleError as error:
        if call.parts == ("function",):
            raise
        return replace(found, skipped={"function": error.message}, hint=error.hint)


def _train(widening: RecordedWidening, call: VerifyCall) -> TrainingVerification:
    """Take optimizer steps on both models, from the widened state if there is one."""
    states = _states(widening, call.optimizer)
    training = train_checkpoints(widening.narrow, widening.wide, widening.plan, call, *states, events=call.events)
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
            f"`{path}` is not the optimizer state that was widened with `{wide.path}`", hint=OTHER_SOURCE
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


def _no_narrow_state(narrow: Checkpoint, carried: OptimizerState) -> CheckpointError:
    return CheckpointError(
        f"no optimizer state `{carried['file']}` next to `{narrow.path}`",
        hint="name it with `--optimizer PATH`, or skip it with `--optimizer none`",
    )


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

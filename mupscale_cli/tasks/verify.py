"""Verify a widened checkpoint: find its source, plan the widening again and compare, as `mupscale verify` does."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mupscale_cli.checkpoints.digests import files_digest
from mupscale_cli.checkpoints.header import METADATA_KEY, read_header
from mupscale_cli.checkpoints.output_files import replace_json
from mupscale_cli.checkpoints.reading import RECORD, Checkpoint, open_checkpoint
from mupscale_cli.engine.events import SILENT, Events
from mupscale_cli.errors import CheckpointError
from mupscale_cli.optimizers.finding import find_optimizer, open_optimizer
from mupscale_cli.optimizers.tree import OptimizerTree
from mupscale_cli.plan import Plan, make_plan, with_noise
from mupscale_cli.record.changes import output_changed, source_changed, source_resized
from mupscale_cli.record.reading import read_record, recorded_method, recorded_request, state_path
from mupscale_cli.tasks.options import called_with
from mupscale_cli.tasks.planning import choose_recipe
from mupscale_cli.tasks.source import find_source
from mupscale_cli.verification.comparing import verify_checkpoints
from mupscale_cli.verification.options import VerifyOptions
from mupscale_cli.verification.result import Verification, WeightsCheck
from mupscale_cli.verification.steps import train_checkpoints
from mupscale_cli.verification.weights import check_state, check_weights

if TYPE_CHECKING:
    from mupscale_cli.record.types import OptimizerState, Record

_log = logging.getLogger(__name__)  # `-v` shows it
NO_STATE = Path("none")  # given as the path of the optimizer state: skip it
_OTHER_SOURCE = "compare with the original source, which may have moved or changed, or widen again"


@called_with(VerifyOptions)
def verify(wide: str | Path, options: VerifyOptions) -> Verification:
    """Check that a widened checkpoint computes the same function as its source.

    Store the result in the directory's mupscale.json if that is writable.

    Args:
        wide: a checkpoint written by mupscale.
        options: the fields of `VerifyOptions`, as separate arguments.

    Raises:
        MupscaleError: a checkpoint is missing or differs from its record.

    Example:
        >>> verify("tiny-x4", dtype="float64").agrees  # doctest: +SKIP
        True
    """
    widening = replan_widening(wide, options.narrow, options.recipe, with_state=options.steps > 0)
    found = verify_checkpoints(widening.narrow, widening.wide, widening.plan, options)
    if widening.plan.perturbation is not None:
        found = replace(found, weights=check_weights(widening.narrow, widening.wide, widening.plan))
    if options.steps:
        states = _states(widening, options.optimizer, allow_pickle=options.allow_pickle)
        training = train_checkpoints(widening.narrow, widening.wide, widening.plan, options, *states)
        carried = widening.record["optimizer_state"]
        policy = carried["policy"] if carried else "copy"
        if policy != "copy":
            training = replace(training, start=f"a fresh start (the state was written with `{policy}` and is not used)")
        found = replace(found, training=training)
    if found.agrees and (changed := output_changed(widening.record, widening.wide)):
        raise CheckpointError(
            f"`{changed}` of `{wide}` has changed since mupscale wrote it, although the models agree",
            hint="`mupscale verify --weights` names the tensors that differ",
        )
    _store_result(
        widening.wide, {**widening.record, "verification": {**found.as_record(), "options": options.as_record()}}
    )
    return found


def verify_weights(
    wide: str | Path,
    narrow: str | Path | None = None,
    *,
    recipe: str | Path | None = None,
    optimizer: Path | None = None,
    allow_pickle: bool = False,
    events: Events = SILENT,
    processes: int | None = 1,
) -> WeightsCheck:
    """Check that every byte of a widened checkpoint matches source, rule and noise; run no model.

    Check the optimizer state as well if one was widened with the weights.

    Args:
        wide: a checkpoint written by mupscale.
        narrow: its source. Default: the source named in its record.
        recipe: name or file of the recipe. Default: the recipe named in the record.
        optimizer: path of the narrow optimizer state, or `none` to skip it. Default: found next to the source.
        allow_pickle: read distributed checkpoints, whose metadata is a pickle.
        events: receive the progress.
        processes: number of local processes that share the work, as for `widen`.

    Raises:
        MupscaleError: a checkpoint is missing or differs from its record.
    """
    widening = replan_widening(wide, narrow, recipe, with_state=True)

    state = _narrow_state(widening, optimizer)  # report a missing state before reading the weights
    events.phase("comparing", widening.plan.num_bytes)
    found = check_weights(widening.narrow, widening.wide, widening.plan, events.advance, processes)
    if isinstance(state, Path):
        return replace(found, state=_check_state(widening, state, events, processes, allow_pickle=allow_pickle))
    return replace(found, state_skipped=state)


def _narrow_state(widening: RecordedWidening, optimizer: Path | None) -> Path | str | None:
    """Find the narrow optimizer state.

    Returns:
        Its path; or, as text, why to skip it; or None if no state was widened.

    Raises:
        CheckpointError: it does not exist.
    """
    carried = widening.record["optimizer_state"]
    if carried is None:
        return None
    if optimizer == NO_STATE:
        return "disabled by `--optimizer none`"
    if widening.is_published and not state_path(widening.wide, carried).exists():
        return "it was not published with the weights"
    before = optimizer or find_optimizer(widening.narrow)
    if before is None:
        raise _no_narrow_state(widening.narrow, carried)
    return before


def _check_state(
    widening: RecordedWidening, before: Path, events: Events, processes: int | None, *, allow_pickle: bool
) -> WeightsCheck:
    """Compare the wide optimizer state with the narrow one."""
    carried = widening.record["optimizer_state"]
    assert carried is not None
    after, key = state_path(widening.wide, carried), carried.get("key")
    if not after.exists():
        return WeightsCheck(0, 0, (f"`{after.name}` is missing",))
    narrow = open_optimizer(before, widening.narrow.config, key=key, allow_pickle=allow_pickle)
    wide = open_optimizer(after, widening.wide.config, key=key, allow_pickle=allow_pickle)
    if carried["source_digest"] != files_digest(narrow.files):
        raise CheckpointError(
            f"`{before}` is not the optimizer state that was widened with `{widening.wide.path}`", hint=_OTHER_SOURCE
        )
    planned = narrow.widen(widening.plan, carried["policy"])
    events.phase("comparing state", planned.num_bytes)
    return check_state(planned, wide, events.advance, processes)


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
        find_source(narrow, with_state=with_state).checkpoint
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
        method=method,
        perturbation=perturbation,
    )
    return RecordedWidening(target, source, with_noise(plan, record["noise"]), record, found.hub is not None)


def _other_source(changed: str, source: Checkpoint, wide: str | Path) -> CheckpointError:
    return CheckpointError(
        f"`{changed}` of `{source.path}` is not the file that `{wide}` was widened from", hint=_OTHER_SOURCE
    )


def _no_narrow_state(narrow: Checkpoint, carried: OptimizerState) -> CheckpointError:
    return CheckpointError(
        f"no optimizer state `{carried['file']}` next to `{narrow.path}`",
        hint="name it with `--optimizer PATH`, or skip it with `--optimizer none`",
    )


def _recorded_recipe(target: Checkpoint, record: Record) -> str | Path:
    """Return the name of the recipe or, if it is not built in, its file."""
    file = record["recipe"].get("file")
    return target.path.resolve().parent / file if file else record["recipe"]["name"]


def _states(
    widening: RecordedWidening, optimizer: Path | None, *, allow_pickle: bool
) -> tuple[OptimizerTree | None, OptimizerTree | None]:
    """Load the optimizer states of both checkpoints; None for both if none was copied."""
    source, target, carried = widening.narrow, widening.wide, widening.record["optimizer_state"]
    if not carried or carried["policy"] != "copy" or optimizer == NO_STATE:
        return None, None
    before = optimizer or find_optimizer(source)
    after = state_path(target, carried)
    if before is None:
        raise _no_narrow_state(source, carried)
    return (
        open_optimizer(before, source.config, key=carried.get("key"), allow_pickle=allow_pickle).load(),
        open_optimizer(after, target.config, key=carried.get("key"), allow_pickle=allow_pickle).load(),
    )


def _store_result(target: Checkpoint, record: dict[str, Any]) -> None:
    """Write the record to mupscale.json if that is writable; never change the header of a single file."""
    file = target.path / RECORD
    if not target.is_file and not file.is_symlink() and os.access(file, os.W_OK) and os.access(target.path, os.W_OK):
        replace_json(file, record)


def _recorded_source(target: Checkpoint, record: Record, *, with_state: bool) -> Checkpoint:
    where = record["source"]
    if "repo" in where:
        return find_source(f"{where['repo']}@{where['revision']}", with_state=with_state).checkpoint
    path = target.path.resolve().parent / where["path"]
    _log.info("source: %s (named in the record of %s)", path, target.path)
    if not path.exists():
        raise CheckpointError(
            f"the source of `{target.path}` is not at `{path}`", hint="name it: `mupscale verify NARROW WIDE`"
        )
    return open_checkpoint(path)


def newest_widened(folder: Path) -> Path:
    """Return the checkpoint in a folder that mupscale wrote last.

    Raises:
        CheckpointError: the folder has no widened checkpoint.
    """
    widened = [file.parent for file in folder.glob(f"*/{RECORD}")]
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
    files = path.glob("*.safetensors") if path.is_dir() else (path,)
    return max((file.stat().st_mtime for file in files), default=0.0)

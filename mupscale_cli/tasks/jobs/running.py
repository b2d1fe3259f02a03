"""The steps of a job, done one after the other."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mupscale_cli.checkpoints.hub.publishing import require_login
from mupscale_cli.checkpoints.reading import open_checkpoint
from mupscale_cli.engine.events import SILENT, Events
from mupscale_cli.errors import MupscaleError, RunError
from mupscale_cli.tasks.jobs.finished import find_changed_file, is_still_verified, reason_to_write
from mupscale_cli.tasks.jobs.steps import JobPlan, PlannedStep, PushStep, StepResult, VerifyStep, WidenStep
from mupscale_cli.tasks.planning import plan_source
from mupscale_cli.tasks.push import prepare_push, push_target
from mupscale_cli.tasks.source import find_source
from mupscale_cli.tasks.widen import widen
from mupscale_cli.text import bytes_text

if TYPE_CHECKING:
    from mupscale_cli.verification.result import Verification, WeightsCheck

_log = logging.getLogger(__name__)  # `-v` shows it


@dataclass(frozen=True)
class JobEvents:
    """What a caller wants to be told while a job runs.

    Attributes:
        begin: called with the number of a step (from 1) and the step, before it is done.
        working: makes the context of a step's work, which has the events of its progress.
    """

    begin: Callable[[int, PlannedStep], None] = lambda _number, _planned: None
    working: Callable[[], AbstractContextManager[Events]] = lambda: nullcontext(SILENT)


def run_job(job: JobPlan, events: JobEvents = JobEvents(), *, processes: int | None = 1) -> Iterator[StepResult]:
    """Do the steps of a job in their order; what came of each is yielded as it is done.

    The first step that fails, or whose models differ, is the last: those after it are yielded as `not run`.

    Args:
        job: what `plan_job` planned.
        events: for progress.
        processes: how many write an output or compare its weights, as for `widen`.

    Raises:
        RunError: a disk has no room for what is to be written.
        HubError: something is to be pushed, and there is no token.
    """
    for disk in job.disks:
        if not disk.has_room:
            raise RunError(
                f"not enough disk: the outputs take {bytes_text(disk.needed)}, `{disk.place}` has "
                f"{bytes_text(disk.free)} free",
                hint="free some space, or write to another disk",
            )
    for one in job.steps:  # before the work, not after it
        if isinstance(one.step, PushStep):
            require_login(push_target(one.step.target, one.step.options))
    has_stopped = False
    for number, one in enumerate(job.steps, 1):
        if has_stopped:
            yield StepResult(one, "not run", "an earlier step did not go well")
            continue
        events.begin(number, one)
        try:
            with events.working() as work:
                result = _do(one, work, processes)
        except MupscaleError as error:
            result = StepResult(one, "failed", error.message, error=error)
        has_stopped = result.status in ("failed", "differs")
        yield result


def _do(one: PlannedStep, events: Events, processes: int | None) -> StepResult:
    if isinstance(one.step, WidenStep):
        return _do_widen(one, one.step, events, processes)
    if isinstance(one.step, VerifyStep):
        return _do_verify(one, one.step, events, processes)
    return _do_push(one, one.step)


def _do_widen(one: PlannedStep, step: WidenStep, events: Events, processes: int | None) -> StepResult:
    source = find_source(step.checkpoint, headers_only=True)
    plan = plan_source(source, step.options)
    if one.target.exists():
        why = reason_to_write(step, source, plan, one.target, {})
        why = why or find_changed_file(step, source, open_checkpoint(one.target))
        if why is None:
            _log.info("%s is complete: its digests and those of its source are what its record says", one.target)
            return _verified_before(one, step)
        if not step.options.overwrite:
            raise RunError(
                f"`{one.target}` is there, but is not what this step makes: {why}",
                hint="`overwrite: true` in the step, or `--overwrite`, replaces it; or choose another `output`",
            )
        _log.info("%s is made anew: %s", one.target, why)
    result = widen(
        source.fetched(step.options.state),
        **{**vars(step.options), "output": one.target},
        resume=True,
        plan=plan,
        events=events,
        processes=processes,
    )
    found = result.verification
    if found is not None and not found.agrees:
        return StepResult(one, "differs", "the models differ; nothing was written", result, found)
    return StepResult(one, "done", "widened", result, found)


def _verified_before(one: PlannedStep, step: WidenStep) -> StepResult:
    """A finished output; verified now where it is to be and was not."""
    noted = (open_checkpoint(one.target).record or {}).get("verification") or {}
    if not step.options.verify or noted.get("agrees") is True:
        return StepResult(one, "skipped", "complete, from the same input with the same options")
    from mupscale_cli.tasks.verify import verify
    from mupscale_cli.verification.result import CannotVerify

    try:
        found = verify(one.target, **vars(replace(step.options.verification, narrow=step.checkpoint)))
    except CannotVerify as reason:
        return StepResult(one, "skipped", f"complete; not verified: {reason.message}")
    if not found.agrees:
        return StepResult(one, "differs", "the models differ", None, found)
    return StepResult(one, "done", "was complete, and is now verified", None, found)


def _do_verify(one: PlannedStep, step: VerifyStep, events: Events, processes: int | None) -> StepResult:
    from mupscale_cli.tasks.verify import verify, verify_weights

    found: Verification | WeightsCheck
    if step.weights:
        found = verify_weights(
            step.wide,
            step.options.narrow,
            recipe=step.options.recipe,
            optimizer=step.options.optimizer,
            allow_pickle=step.options.allow_pickle,
            events=events,
            processes=processes,
        )
    else:
        if Path(step.wide).exists() and is_still_verified(step):
            return StepResult(one, "skipped", "verified with the same options")
        events.phase("verifying", 0)
        found = verify(step.wide, **vars(step.options))
    if not found.agrees:
        return StepResult(one, "differs", "the models differ", verification=found)
    return StepResult(one, "done", "as planned", verification=found)


def _do_push(one: PlannedStep, step: PushStep) -> StepResult:
    prepared = prepare_push(step.wide, step.target, step.options)
    for warning in prepared.warnings:
        _log.warning("warning: %s", warning)
    if prepared.repository.commit and all(status == "unchanged" for status in prepared.statuses().values()):
        return StepResult(one, "skipped", "the repository has all of it")
    published = prepared.send()
    return StepResult(one, "done", "published", url=published.url)

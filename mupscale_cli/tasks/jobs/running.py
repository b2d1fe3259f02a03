"""Run the steps of a job, one after the other."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from mupscale_cli.checkpoints.hub.publishing import require_login
from mupscale_cli.checkpoints.reading import open_checkpoint
from mupscale_cli.checkpoints.staging import recover
from mupscale_cli.engine.events import SILENT, Events
from mupscale_cli.errors import MupscaleError, RunError
from mupscale_cli.tasks.jobs.finished import find_changed_file, is_still_verified, reason_to_write
from mupscale_cli.tasks.jobs.steps import JobPlan, PlannedStep, PushStep, StepResult, VerifyStep, WidenStep
from mupscale_cli.tasks.planning import plan_source
from mupscale_cli.tasks.push import prepare_push, push_target
from mupscale_cli.tasks.source import find_source
from mupscale_cli.tasks.widen import widen
from mupscale_cli.text import bytes_text

_log = logging.getLogger(__name__)  # `-v` shows it


@dataclass(frozen=True)
class JobEvents:
    """Callbacks for the progress of a job.

    Attributes:
        begin: called with the number of a step, from 1, and the step before it runs.
        working: returns the context that a step runs in; the context provides the events of its progress.
    """

    begin: Callable[[int, PlannedStep], None] = lambda _number, _planned: None
    working: Callable[[], AbstractContextManager[Events]] = lambda: nullcontext(SILENT)


def run_job(job: JobPlan, events: JobEvents = JobEvents(), *, processes: int | None = 1) -> Iterator[StepResult]:
    """Run the steps of a job in order; yield the result of each one when it ends.

    Stop after the first step that fails or whose models differ, and yield the remaining steps as `not run`.

    Args:
        job: the job as planned by `plan_job`.
        events: receive the progress.
        processes: number of processes that write an output or compare its weights, as for `widen`.

    Raises:
        RunError: a disk has too little free space for the outputs.
        HubError: a step pushes to the Hub, but there is no token.
    """
    for disk in job.disks:
        if not disk.has_room:
            raise RunError(
                f"not enough disk space: the outputs take {bytes_text(disk.needed)}, `{disk.place}` has "
                f"{bytes_text(disk.free)} free",
                hint="free some space, or write to another disk",
            )
    for planned in job.steps:  # require the login before the work, not after it
        if isinstance(planned.step, PushStep):
            require_login(push_target(planned.step.target, planned.step.options))
    has_stopped = False
    for number, planned in enumerate(job.steps, 1):
        if has_stopped:
            yield StepResult(planned, "not run", "an earlier step failed")
            continue
        events.begin(number, planned)
        try:
            with events.working() as work:
                result = _run_step(planned, work, processes)
        except MupscaleError as error:
            result = StepResult(planned, "failed", error.message, error=error)
        has_stopped = result.status in ("failed", "differs")
        yield result


def _run_step(planned: PlannedStep, events: Events, processes: int | None) -> StepResult:
    if isinstance(planned.step, WidenStep):
        return _run_widen(planned, planned.step, events, processes)
    if isinstance(planned.step, VerifyStep):
        return _run_verify(planned, planned.step, events, processes)
    return _run_push(planned, planned.step)


def _run_widen(planned: PlannedStep, step: WidenStep, events: Events, processes: int | None) -> StepResult:
    source = find_source(step.checkpoint, step.options.reading, recipe=step.options.recipe, headers_only=True)
    plan = plan_source(source, step.options)
    recover(planned.target, events.note)
    if planned.target.exists():
        why = reason_to_write(step, source, plan, planned.target, {})
        why = why or find_changed_file(step, source, open_checkpoint(planned.target))
        if why is None:
            _log.info("%s is complete: its digests and those of its source match its record", planned.target)
            return _result_of_finished(planned, step)
        if not step.options.overwrite:
            raise RunError(
                f"`{planned.target}` exists, but this step would write something else: {why}",
                hint="replace it with `overwrite: true` in the step or with `--overwrite`, or choose another `output`",
            )
        _log.info("rewriting %s: %s", planned.target, why)
    result = widen(
        source.fetched(step.options.state),
        **{**vars(step.options), "output": planned.target},
        resume=True,
        plan=plan,
        events=events,
        processes=processes,
    )
    if result.verification is None:
        return StepResult(planned, "done", "widened", result)
    from mupscale_cli.verification.result import Verification  # verifying has imported torch already

    verification = Verification(function=result.verification)
    if not verification.agrees:
        return StepResult(planned, "differs", "the models differ; nothing was written", result, verification)
    return StepResult(planned, "done", "widened", result, verification)


def _result_of_finished(planned: PlannedStep, step: WidenStep) -> StepResult:
    """Return the result of a finished output; verify it first if the step asks for that and it is not verified."""
    recorded = (open_checkpoint(planned.target).record or {}).get("verification") or {}
    if not step.options.verify or recorded.get("agrees") is True:
        return StepResult(planned, "skipped", "complete, from the same input with the same options")
    from mupscale_cli.tasks.verify import verify
    from mupscale_cli.verification.result import CannotVerify

    options = replace(step.options.verification, narrow=step.checkpoint, only=("function",))
    try:
        verification = verify(planned.target, **vars(options))
    except CannotVerify as reason:
        return StepResult(planned, "skipped", f"complete; not verified: {reason.message}")
    if not verification.agrees:
        return StepResult(planned, "differs", "the models differ", None, verification)
    return StepResult(planned, "done", "was complete; verified now", None, verification)


def _run_verify(planned: PlannedStep, step: VerifyStep, events: Events, processes: int | None) -> StepResult:
    from mupscale_cli.tasks.verify import verify

    if Path(step.wide).exists() and is_still_verified(step):
        return StepResult(planned, "skipped", "verified with the same options")
    verification = verify(step.wide, **vars(step.options), events=events, processes=processes)
    if not verification.agrees:
        return StepResult(planned, "differs", "the models differ", verification=verification)
    if error := verification.incomplete:
        return StepResult(planned, "failed", error.message, verification=verification, error=error)
    return StepResult(planned, "done", "verified", verification=verification)


def _run_push(planned: PlannedStep, step: PushStep) -> StepResult:
    prepared = prepare_push(step.wide, step.target, step.options)
    for warning in prepared.warnings:
        _log.warning("warning: %s", warning)
    if prepared.repository.commit and all(status == "unchanged" for status in prepared.statuses().values()):
        return StepResult(planned, "skipped", "the repository is up to date")
    published = prepared.send()
    return StepResult(planned, "done", "published", url=published.url)

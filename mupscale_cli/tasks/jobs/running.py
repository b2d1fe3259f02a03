"""Run the steps of a job, one after the other."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from mupscale_cli.checkpoints.hub.publishing import require_login
from mupscale_cli.engine.events import SILENT, Events
from mupscale_cli.errors import MupscaleError, RunError
from mupscale_cli.tasks.jobs.steps import JobPlan, PlannedStep, PushStep, StepResult, VerifyStep, WidenStep
from mupscale_cli.tasks.jobs.verified import is_still_verified
from mupscale_cli.tasks.push import prepare_push, push_target
from mupscale_cli.tasks.widen import Widened, widen
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
                f"not enough disk space: outputs and downloads take {bytes_text(disk.needed)}, `{disk.place}` has "
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
    options = {**vars(step.options), "output": planned.target}
    result = widen(step.checkpoint, **options, resume=True, events=events, processes=processes)
    if result.verification is None:
        return StepResult(planned, "done" if result.is_new else "skipped", _without_verification(result), result)
    from mupscale_cli.verification.result import Verification  # verifying has imported torch already

    verification = Verification(function=result.verification)
    if not verification.agrees:
        why = "the models differ; nothing was written" if result.is_new else "the models differ"
        return StepResult(planned, "differs", why, result, verification)
    done = "widened" if result.is_new else "was complete; verified now"
    return StepResult(planned, "done", done, result, verification)


def _without_verification(result: Widened) -> str:
    if result.is_new:
        return "widened"
    if result.skipped is not None:
        return f"complete; not verified: {result.skipped}"
    return "complete, from the same input with the same options"


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

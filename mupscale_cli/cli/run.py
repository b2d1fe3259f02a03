"""`mupscale run`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from mupscale_cli.cli import options, output
from mupscale_cli.errors import Interrupted

if TYPE_CHECKING:
    from mupscale_cli.tasks.jobs import JobPlan, PlannedStep, StepResult

_STYLES = {"done": "bold green", "skipped": "green", "differs": "bold red", "failed": "bold red", "not run": "dim"}


def run(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A job file: YAML with a list of steps.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan, and what it needs of disk and memory; write nothing.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace outputs that were made from something else, or otherwise.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Do the steps of a job file in their order: widenings, verifications, pushes. What is done is not done again.

    `mupscale help pipelines` describes job files. Exit code 1 if models differ, 2 if a step fails.
    """
    from mupscale_cli.tasks.jobs import JobEvents, exit_code, plan_job, run_job
    from mupscale_cli.tasks.jobs.file import read_job  # only here, as every other command would wait for it

    job = plan_job(read_job(file), overwrite=overwrite)
    if dry_run:
        if as_json:
            output.print_document("run", _document(file, job, ()))
        else:
            _print_plan(job)
        return
    results: list[StepResult] = []
    try:
        events = JobEvents(lambda number, one: _tell(number, one, len(job.steps)), output.progress)
        for done in run_job(job, events, processes=None):
            results.append(done)  # noqa: PERF402 (what is done is known when the rest is interrupted)
    except KeyboardInterrupt as error:
        if not as_json:
            _print_results(results)
        raise Interrupted("interrupted; what is done is kept, and the same command goes on") from error
    code = exit_code(tuple(results))
    if as_json:
        output.print_document("run", _document(file, job, tuple(results)))
    else:
        _print_results(results)
    for result in results:
        if result.error is not None:
            output.print_error(result.error)
    if code:
        raise typer.Exit(code)


def _tell(number: int, one: PlannedStep, count: int) -> None:
    output.note(f"[{number}/{count}] {one.step.kind} {one.title}")


def _print_plan(job: JobPlan) -> None:
    from mupscale_cli.engine.memory import WIDENING_BYTES, free_memory

    console = output.stdout()
    right = ("", "parameters", "disk", "memory")
    result = output.table("", "step", "what", "parameters", "disk", "memory", "status", right=right)
    for number, one in enumerate(job.steps, 1):
        memory = output.bytes_text(round(one.memory_bytes)) if one.status == "to do" and one.memory_bytes else ""
        size = output.bytes_text(one.disk_bytes) if one.disk_bytes else ""
        status = f"{one.status}: {one.reason}"
        result.add_row(str(number), one.step.kind, escape(one.title), _growth(one), size, memory, escape(status))
    console.print(result)
    console.print()
    for disk in job.disks:
        amounts = f"{output.bytes_text(disk.needed)} needed, {output.bytes_text(disk.free)} free"
        room = "has room" if disk.has_room else "has NOT enough room"
        console.print(f"disk     {amounts}: {disk.place} {room}", markup=False, soft_wrap=True)
    if job.download_bytes:
        console.print(f"download {output.bytes_text(job.download_bytes)} into the Hub's cache", markup=False)
    if job.memory_bytes:
        free = free_memory()
        has = "" if free is None else f", {output.bytes_text(free)} free"
        why = "; to verify in float64, what does not fit is read from disk" if job.memory_bytes > WIDENING_BYTES else ""
        needed = output.bytes_text(round(job.memory_bytes))
        console.print(f"memory   {needed} at most{has}{why}", markup=False, soft_wrap=True)


def _growth(one: PlannedStep) -> str:
    if one.plan is None:
        return ""
    before, after = one.plan.num_parameters
    return f"{output.count_text(before)} -> {output.count_text(after)}"


def _print_results(results: list[StepResult]) -> None:
    result = output.table("", "step", "what", "parameters", "equivalence", "outcome", right=("", "parameters"))
    for number, done in enumerate(results, 1):
        style = _STYLES[done.status]
        outcome = f"[{style}]{done.status}[/]" + escape(f": {done.url or done.reason}")
        result.add_row(
            str(number),
            done.planned.step.kind,
            escape(done.planned.title),
            _growth(done.planned),
            _compared(done),
            outcome,
        )
    output.report().print(result)


def _compared(done: StepResult) -> str:
    found = done.verification
    if found is None:
        return ""
    from mupscale_cli.verification.result import WeightsCheck  # torch is there, as something was verified

    if isinstance(found, WeightsCheck):
        return "every byte" if found.agrees else f"{len(found.differences)} differ"
    compared = found.unperturbed or found
    return f"{compared.max_rel:.1e} in {found.dtype}" + (" without its noise" if compared is not found else "")


def _document(file: Path, job: JobPlan, results: tuple[StepResult, ...]) -> dict[str, Any]:
    from mupscale_cli.engine.memory import free_memory
    from mupscale_cli.tasks.jobs import exit_code

    by_step = {id(done.planned): done for done in results}
    return {
        "file": str(file),
        "dry_run": not results,
        "exit_code": exit_code(results),
        "steps": [_step_document(number, one, by_step.get(id(one))) for number, one in enumerate(job.steps, 1)],
        "disks": [
            {"place": str(disk.place), "needed": disk.needed, "free": disk.free, "has_room": disk.has_room}
            for disk in job.disks
        ],
        "download_bytes": job.download_bytes,
        "memory": {"needed": round(job.memory_bytes), "free": free_memory()},
    }


def _step_document(number: int, one: PlannedStep, done: StepResult | None) -> Mapping[str, Any]:
    before, after = one.plan.num_parameters if one.plan else (None, None)
    error = done.error if done else None
    return {
        "number": number,
        "kind": one.step.kind,
        "title": one.title,
        "status": done.status if done else one.status,
        "reason": done.reason if done else one.reason,
        "target": str(one.target),
        "parameters": None if one.plan is None else {"before": before, "after": after},
        "disk_bytes": one.disk_bytes,
        "download_bytes": one.download_bytes,
        "memory_bytes": round(one.memory_bytes),
        "verification": done.verification.as_record() if done and done.verification else None,
        "url": done.url if done else None,
        "error": None
        if error is None
        else {"error": type(error).__name__, "message": error.message, "hint": error.hint},
    }

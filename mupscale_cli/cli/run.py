"""`mupscale run`."""

from __future__ import annotations

import os
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
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Job file: YAML with a list of steps.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan with its disk and memory needs. Writes nothing.")
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace outputs made from other sources or with other options."),
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="FILE.html",
            help="Also write one page about all models: a self-contained HTML file, which each run writes again. "
            "Needs the extra `plot`.",
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Run the steps of a job file in order: widenings, verifications, pushes. Skips finished steps.

    `mupscale help pipelines` describes job files. Exits with 1 if models differ, 2 if a step fails.
    """
    from mupscale_cli.tasks.jobs import JobEvents, exit_code, plan_job, run_job
    from mupscale_cli.tasks.jobs.file import read_job  # imported late: it slows the start of other commands

    if report is not None:
        from mupscale_cli.reports.pictures.canvas import check_report

        check_report(report, overwrite=True)  # a job is run again and again, and its page with it
    job = plan_job(read_job(file), overwrite=overwrite)
    if dry_run:
        if as_json:
            output.print_document("run", _document(file, job, ()))
        else:
            _print_plan(job)
        return
    results: list[StepResult] = []
    try:
        events = JobEvents(lambda number, step: _announce(number, step, len(job.steps)), output.progress)
        for result in run_job(job, events, processes=None):
            results.append(result)  # noqa: PERF402 (keeps the results of finished steps if a later one is interrupted)
    except KeyboardInterrupt as error:
        if results and not as_json:
            _print_results(results)
        raise Interrupted("interrupted; finished steps are kept, and the same command continues") from error
    if as_json:
        output.print_document("run", _document(file, job, tuple(results)))
    else:
        _print_results(results)
    if report is not None:
        _write_report(report, file, results)
    for failure in filter(None, (result.error for result in results)):
        output.print_error(failure)
    raise typer.Exit(exit_code(tuple(results)))


def _write_report(report: Path, file: Path, results: list[StepResult]) -> None:
    """Write the page about the models that exist, as their records describe them now."""
    from mupscale_cli.record.reading import read_record
    from mupscale_cli.reports.pictures.canvas import publish
    from mupscale_cli.reports.pictures.family import family
    from mupscale_cli.tasks.source import find_source

    targets = [str(result.planned.target) for result in results if result.planned.step.kind == "widen"]
    made = {os.path.relpath(path, file.parent): path for path in targets if Path(path).exists()}
    records = {name: read_record(find_source(path, headers_only=True).checkpoint) for name, path in made.items()}
    publish(report, family(file.name, records).encode())
    output.note(f"wrote {report}")


def _announce(number: int, planned: PlannedStep, count: int) -> None:
    output.note(f"[{number}/{count}] {planned.step.kind} {planned.title}")


def _print_plan(job: JobPlan) -> None:
    from mupscale_cli.engine.memory import WIDENING_BYTES, free_memory

    console = output.stdout()
    right = ("", "parameters", "disk", "memory")
    table = output.table("", "step", "what", "parameters", "disk", "memory", "status", right=right)
    for number, planned in enumerate(job.steps, 1):
        disk = output.bytes_text(planned.disk_bytes) if planned.disk_bytes else ""
        needs_memory = planned.status == "to do" and planned.memory_bytes
        memory = output.bytes_text(round(planned.memory_bytes)) if needs_memory else ""
        status = escape(f"{planned.status}: {planned.reason}")
        table.add_row(str(number), planned.step.kind, escape(planned.title), _growth(planned), disk, memory, status)
    console.print(table)
    console.print()
    for space in job.disks:
        amounts = f"{output.bytes_text(space.needed)} needed, {output.bytes_text(space.free)} free"
        shortage = "" if space.has_room else ": NOT enough"
        console.print(f"disk     {amounts} at {space.place}{shortage}", markup=False, soft_wrap=True)
    if job.download_bytes:
        console.print(f"download {output.bytes_text(job.download_bytes)} into the Hub's cache", markup=False)
    if job.memory_bytes:
        free = free_memory()
        available = "" if free is None else f", {output.bytes_text(free)} free"
        verifies = job.memory_bytes > WIDENING_BYTES
        fallback = "; verification reads a model that does not fit from disk" if verifies else ""
        needed = output.bytes_text(round(job.memory_bytes))
        console.print(f"memory   at most {needed} needed{available}{fallback}", markup=False, soft_wrap=True)


def _growth(planned: PlannedStep) -> str:
    if planned.plan is None:
        return ""
    before, after = planned.plan.num_parameters
    return f"{output.count_text(before)} -> {output.count_text(after)}"


def _print_results(results: list[StepResult]) -> None:
    table = output.table("", "step", "what", "parameters", "equivalence", "outcome", right=("", "parameters"))
    for number, result in enumerate(results, 1):
        style = _STYLES[result.status]
        outcome = f"[{style}]{result.status}[/]" + escape(f": {result.url or result.reason}")
        table.add_row(
            str(number),
            result.planned.step.kind,
            escape(result.planned.title),
            _growth(result.planned),
            _equivalence(result),
            outcome,
        )
    output.report().print(table)


def _equivalence(result: StepResult) -> str:
    verification = result.verification
    if verification is None:
        return ""
    function = verification.function
    if function is None:
        return "as planned" if verification.agrees else "differs from the plan"
    compared = function.unperturbed or function
    noise = "" if compared is function else " without noise"
    return f"{compared.max_rel:.1e} in {function.dtype}{noise}"


def _document(file: Path, job: JobPlan, results: tuple[StepResult, ...]) -> dict[str, Any]:
    from mupscale_cli.engine.memory import free_memory
    from mupscale_cli.tasks.jobs import exit_code

    by_step = {id(result.planned): result for result in results}
    return {
        "file": str(file),
        "dry_run": not results,
        "exit_code": exit_code(results),
        "steps": [_step_document(number, step, by_step.get(id(step))) for number, step in enumerate(job.steps, 1)],
        "disks": [disk.as_record() for disk in job.disks],
        "download_bytes": job.download_bytes,
        "memory": {"needed": round(job.memory_bytes), "free": free_memory()},
    }


def _step_document(number: int, planned: PlannedStep, result: StepResult | None) -> Mapping[str, Any]:
    before, after = planned.plan.num_parameters if planned.plan else (None, None)
    error = result.error if result else None
    return {
        "number": number,
        "kind": planned.step.kind,
        "title": planned.title,
        "status": result.status if result else planned.status,
        "reason": result.reason if result else planned.reason,
        "target": str(planned.target),
        "parameters": None if planned.plan is None else {"before": before, "after": after},
        "disk_bytes": planned.disk_bytes,
        "download_bytes": planned.download_bytes,
        "memory_bytes": round(planned.memory_bytes),
        "verification": result.verification.as_record() if result and result.verification else None,
        "url": result.url if result else None,
        "error": None
        if error is None
        else {"error": type(error).__name__, "message": error.message, "hint": error.hint},
    }

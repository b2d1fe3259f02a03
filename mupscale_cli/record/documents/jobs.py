"""Documents of `--json`: what `run` does."""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

from mupscale_cli.record.documents.plan import DiskNeeds, MemoryNeeds
from mupscale_cli.record.schema import limits
from mupscale_cli.record.types import Count, Counts, Verification


class StepError(TypedDict):
    """The error of a failed step."""

    error: Annotated[str, "Class of the error."]
    message: Annotated[str, "What is wrong, and where."]
    hint: Annotated[str | None, "How to fix it."]


class Step(TypedDict):
    """A step of a job file."""

    number: Annotated[int, "Number of the step, from 1.", limits(minimum=1)]
    kind: Annotated[Literal["widen", "verify", "push"], "Action of the step."]
    title: Annotated[str, "Description."]
    status: Annotated[Literal["to do", "done", "skipped", "differs", "failed", "not run"], "Status or result."]
    reason: Annotated[str, "Why it has this status."]
    target: Annotated[str, "Path that it writes, verifies or pushes."]
    parameters: Annotated[Counts | None, "Numbers of parameters of a widening; null for other steps."]
    disk_bytes: Annotated[Count, "Bytes to write."]
    download_bytes: Annotated[Count, "Bytes to download from the Hub."]
    memory_bytes: Annotated[Count, "Peak memory in bytes."]
    verification: Annotated[Verification | None, "Result of the verification; null if there is none."]
    url: Annotated[str | None, "Address of a pushed repository or pull request; null for other steps."]
    error: Annotated[StepError | None, "Error of a failed step; null for other steps."]


class Run(TypedDict):
    """Output of `mupscale run`, with or without --dry-run."""

    file: Annotated[str, "The job file."]
    dry_run: Annotated[bool, "Whether the steps were only planned."]
    exit_code: Annotated[int, "Exit code of the command."]
    steps: Annotated[list[Step], "The steps in order."]
    disks: Annotated[list[DiskNeeds], "File systems that the job writes to, the Hub's cache included."]
    download_bytes: Annotated[Count, "Bytes that all steps download."]
    memory: Annotated[MemoryNeeds, "Memory of this machine."]

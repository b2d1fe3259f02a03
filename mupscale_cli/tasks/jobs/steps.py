"""The types of a job: steps, planned steps and results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Union

from mupscale_cli.errors import MupscaleError
from mupscale_cli.plan import Plan
from mupscale_cli.tasks.options import WidenOptions
from mupscale_cli.tasks.push import PushOptions
from mupscale_cli.tasks.space import Disk
from mupscale_cli.tasks.widen import Widened
from mupscale_cli.verification.options import VerifyOptions

if TYPE_CHECKING:
    from mupscale_cli.verification.result import Verification

Status = Literal["to do", "done", "skipped", "differs", "failed", "not run"]


@dataclass(frozen=True)
class WidenStep:
    """A widening.

    Attributes:
        checkpoint: path or Hub id of the checkpoint to widen.
        options: options of `widen`.
        folder: output folder for models on the Hub if the options have no output path.
    """

    checkpoint: str
    options: WidenOptions
    folder: Path = Path()
    kind: Literal["widen"] = "widen"


@dataclass(frozen=True)
class VerifyStep:
    """A verification.

    Attributes:
        wide: path or Hub id of the checkpoint to verify.
        options: options of `verify`.
    """

    wide: str
    options: VerifyOptions = field(default_factory=VerifyOptions)
    kind: Literal["verify"] = "verify"


@dataclass(frozen=True)
class PushStep:
    """A push to the Hub; its attributes are the arguments of `prepare_push`."""

    wide: str
    target: str
    options: PushOptions = field(default_factory=PushOptions)
    kind: Literal["push"] = "push"


Step = Union[WidenStep, VerifyStep, PushStep]


@dataclass(frozen=True)
class PlannedStep:
    """A step and its plan.

    Attributes:
        step: the step.
        title: the step in words.
        status: `to do`, or `skipped` if its output exists and is complete.
        reason: why it has this status.
        target: the path that it writes, verifies or pushes.
        plan: the plan of a widening; None for other steps.
        disk_bytes: bytes that it writes.
        downloads: what it downloads from the Hub: paths in the cache, and their bytes.
        memory_bytes: estimate of its peak memory.
    """

    step: Step
    title: str
    status: Status
    reason: str
    target: Path
    plan: Plan | None = None
    disk_bytes: int = 0
    downloads: Mapping[Path, int] = field(default_factory=dict)
    memory_bytes: float = 0

    @property
    def download_bytes(self) -> int:
        return sum(self.downloads.values())


@dataclass(frozen=True)
class JobPlan:
    """A planned job.

    Attributes:
        steps: its steps.
        disks: the file systems that it writes to.
    """

    steps: tuple[PlannedStep, ...]
    disks: tuple[Disk, ...]

    @property
    def download_bytes(self) -> int:
        return sum({file: size for step in self.steps for file, size in step.downloads.items()}.values())

    @property
    def memory_bytes(self) -> float:
        return max((step.memory_bytes for step in self.steps if step.status == "to do"), default=0)


@dataclass(frozen=True)
class StepResult:
    """The result of a step.

    Attributes:
        planned: the step.
        status: `done`, `skipped`, `differs`, `failed` or `not run`.
        reason: why it has this status.
        widened: result of a widening; None for other steps and if nothing was written.
        verification: result of a verification; None if there was none.
        url: address of a pushed repository or pull request; None for other steps.
        error: the error that made it fail; None if it did not.
    """

    planned: PlannedStep
    status: Status
    reason: str
    widened: Widened | None = None
    verification: Verification | None = None
    url: str | None = None
    error: MupscaleError | None = None


def exit_code(results: Sequence[StepResult]) -> int:
    """Return the exit code of a job: that of the first step that failed or whose models differ, else 0."""
    for result in results:
        if result.error is not None:
            return result.error.exit_code
        if result.status == "differs":
            return 1
    return 0

"""What a job is made of: its steps, what is planned of each, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Union

from mupscale_cli.errors import MupscaleError
from mupscale_cli.plan import Plan
from mupscale_cli.tasks.options import WidenOptions
from mupscale_cli.tasks.push import PushOptions
from mupscale_cli.tasks.widen import Widened
from mupscale_cli.verification.options import VerifyOptions

if TYPE_CHECKING:
    from mupscale_cli.verification.result import Verification, WeightsCheck

Status = Literal["to do", "done", "skipped", "differs", "failed", "not run"]


@dataclass(frozen=True)
class WidenStep:
    """A widening.

    Attributes:
        checkpoint: what is widened.
        options: as for `widen`.
        folder: where models of the Hub go, if the options do not say.
    """

    checkpoint: str
    options: WidenOptions
    folder: Path = Path()
    kind: Literal["widen"] = "widen"


@dataclass(frozen=True)
class VerifyStep:
    """A verification.

    Attributes:
        wide: what is verified.
        options: as for `verify`.
        weights: compare every byte and run no model, as `verify_weights` does.
    """

    wide: str
    options: VerifyOptions = field(default_factory=VerifyOptions)
    weights: bool = False
    kind: Literal["verify"] = "verify"


@dataclass(frozen=True)
class PushStep:
    """A publication; its attributes are the arguments of `prepare_push`."""

    wide: str
    target: str
    options: PushOptions = field(default_factory=PushOptions)
    kind: Literal["push"] = "push"


Step = Union[WidenStep, VerifyStep, PushStep]


@dataclass(frozen=True)
class PlannedStep:
    """A step, and what is known of it before anything is done.

    Attributes:
        step: what to do.
        title: the same in words.
        status: `to do`, or `skipped` where its output is there.
        reason: why.
        plan: of a widening.
        target: what it works on or writes.
        disk_bytes: what it writes.
        download_bytes: what it fetches from the Hub.
        memory_bytes: what it takes at most, as far as that is known.
    """

    step: Step
    title: str
    status: Status
    reason: str
    target: Path
    plan: Plan | None = None
    disk_bytes: int = 0
    download_bytes: int = 0
    memory_bytes: float = 0


@dataclass(frozen=True)
class Disk:
    """What a job needs of a file system.

    Attributes:
        place: a directory on it.
        needed: bytes of everything that is to be written there.
        free: bytes, those that a killed run has written already among them.
    """

    place: Path
    needed: int
    free: int

    @property
    def has_room(self) -> bool:
        return self.needed <= self.free


@dataclass(frozen=True)
class JobPlan:
    """A job that is planned; nothing is done."""

    steps: tuple[PlannedStep, ...]
    disks: tuple[Disk, ...]

    @property
    def download_bytes(self) -> int:
        return sum(step.download_bytes for step in self.steps)

    @property
    def memory_bytes(self) -> float:
        return max((step.memory_bytes for step in self.steps if step.status == "to do"), default=0)


@dataclass(frozen=True)
class StepResult:
    """What came of a step.

    Attributes:
        planned: the step.
        status: `done`, `skipped`, `differs`, `failed` or `not run`.
        reason: in words.
        widened: of a widening that was done.
        verification: of a step that verified.
        url: of a push.
        error: why it failed.
    """

    planned: PlannedStep
    status: Status
    reason: str
    widened: Widened | None = None
    verification: Verification | WeightsCheck | None = None
    url: str | None = None
    error: MupscaleError | None = None


def exit_code(results: Sequence[StepResult]) -> int:
    """The exit code of a job: that of the first step that did not go well."""
    for result in results:
        if result.error is not None:
            return result.error.exit_code
        if result.status == "differs":
            return 1
    return 0

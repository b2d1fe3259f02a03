"""What a job is made of: its steps, what is planned of each, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Union

from mupscale_cli.errors import MupscaleError
from mupscale_cli.optimizers.options import StateOptions
from mupscale_cli.plan import DEFAULT_SHARD_BYTES, Plan
from mupscale_cli.plan.methods import MUPSCALE, Method
from mupscale_cli.plan.perturbation import Perturbation
from mupscale_cli.tasks.push import PushOptions
from mupscale_cli.tasks.widen import Widened

if TYPE_CHECKING:
    from mupscale_cli.verification.options import VerifyOptions
    from mupscale_cli.verification.result import Verification, WeightsCheck

Status = Literal["to do", "done", "skipped", "differs", "failed", "not run"]


@dataclass(frozen=True)
class Comparing:
    """How models are compared.

    Attributes:
        dtype: in which both run; `auto` is float64 where it fits.
        device: where; `auto` is the GPU where there is one.
        model: `path/or/module.py:build` for an own model.
        seed: of the random inputs.
        steps: optimizer steps to take on both as well.
    """

    dtype: str = "auto"
    device: str = "auto"
    model: str | None = None
    seed: int = 0
    steps: int = 0

    def options(self) -> VerifyOptions:
        """The same for `verify`; imports torch."""
        from mupscale_cli.verification.options import VerifyOptions

        return VerifyOptions(self.dtype, self.device, self.model, self.seed, self.steps)


@dataclass(frozen=True)
class WidenStep:
    """A widening; its attributes are the arguments of `widen`.

    Further ones are `comparing`, None where it is not verified, and `folder`, where models of the Hub go.
    """

    checkpoint: str
    output: Path | None = None
    factor: int | None = None
    axes: Mapping[str, int] = field(default_factory=dict)
    recipe: str | None = None
    tie: str | None = None
    method: Method = MUPSCALE
    perturbation: Perturbation | None = None
    max_shard_size: int = DEFAULT_SHARD_BYTES
    state: StateOptions = field(default_factory=StateOptions)
    overwrite: bool = False
    allow_nonfinite: bool = False
    comparing: Comparing | None = Comparing()
    folder: Path = Path()
    kind: Literal["widen"] = "widen"


@dataclass(frozen=True)
class VerifyStep:
    """A verification; its attributes are the arguments of `verify`, `weights` asks for `verify_weights`."""

    wide: str
    narrow: str | None = None
    comparing: Comparing = Comparing()
    recipe: str | None = None
    optimizer: Path | None = None
    allow_pickle: bool = False
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
class Done:
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


def exit_code(results: Sequence[Done]) -> int:
    """The exit code of a job: that of the first step that did not go well."""
    for result in results:
        if result.error is not None:
            return result.error.exit_code
        if result.status == "differs":
            return 1
    return 0

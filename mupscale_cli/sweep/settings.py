"""Hold every setting that decides a sweep's result. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mupscale_cli.errors import SweepError
from mupscale_cli.optimizers.options import StateOptions
from mupscale_cli.plan.perturbation import Mode, Perturbation, Scale
from mupscale_cli.sweep.grid import Grid
from mupscale_cli.tasks.reading import AS_STORED, Reading
from mupscale_cli.tasks.source import Source, find_source

Schedule = Literal["constant", "cosine"]
SCHEDULES: tuple[Schedule, ...] = ("constant", "cosine")
PROXY_RECORD = "proxy.json"  # in a proxy's folder: how the checkpoint is widened from it
_OPTIMIZER = "adamw"


@dataclass(frozen=True)
class Training:
    """Settings of the built-in trainer; all values are the narrow run's.

    Attributes:
        steps: optimizer steps per trial.
        batch_size: sequences per step.
        length: tokens per sequence.
        weight_decay: decoupled weight decay of matrices.
        betas: AdamW's betas.
        eps: AdamW's eps.
        clip: maximum gradient norm, counted over the narrow model's units; 0 disables clipping.
        schedule: learning rate after warm-up: `constant`, or half a `cosine` down to a tenth.
        warmup: steps of linear warm-up.
        device: a torch device; `auto` is the GPU if there is one.
    """

    steps: int = 200
    batch_size: int = 16
    length: int = 128
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    clip: float = 1.0
    schedule: Schedule = "constant"
    warmup: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        for option, value, least in (
            ("steps", self.steps, 1),
            ("batch-size", self.batch_size, 1),
            ("length", self.length, 2),
            ("warmup", self.warmup, 0),
            ("weight-decay", self.weight_decay, 0),
            ("clip", self.clip, 0),
        ):
            if not least <= value < float("inf"):
                raise SweepError(f"`--{option} {value:g}` is not at least {least}")
        if not 0 < self.eps < 1:
            raise SweepError(f"`--eps {self.eps:g}` is not between 0 and 1")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise SweepError(f"`--betas {self.betas[0]:g},{self.betas[1]:g}`: each must be at least 0 and below 1")
        if self.schedule not in SCHEDULES:
            raise SweepError(f"unknown `--schedule {self.schedule}`", hint=f"known: {', '.join(SCHEDULES)}")


@dataclass(frozen=True)
class Proxy:
    """A narrow model that the sweep creates and uses in place of the checkpoint.

    Attributes:
        ratio: width of the checkpoint over that of the proxy.
        steps: training steps before the proxy is widened.
    """

    ratio: int
    steps: int


@dataclass(frozen=True)
class Sweep:
    """Settings of a sweep.

    Attributes:
        name: name of the checkpoint.
        checkpoint: file or directory of the checkpoint.
        directory: directory of the study.
        grid: points to try.
        target: width of the large model over the checkpoint's; None for any.
        axes: factors of single axes, which override the width of every trained model.
        reading: how to read the checkpoint.
        recipe: name or file of the recipe; None to choose one by the checkpoint.
        tie: where the factor of a shared readout goes.
        state: handling of the optimizer's state.
        noise_mode: mode of the perturbation.
        noise_scale: scale of the perturbation.
        noise_on: patterns of the names of tensors that get noise; empty for all.
        training: settings of the built-in trainer.
        data: training data of the built-in trainer; None with a command.
        data_type: number type of a `.bin` file: `auto`, `uint16` or `uint32`.
        command: the user's own trainer, None for the built-in one.
        proxy: the proxy to create in place of the checkpoint, None for no proxy.
    """

    name: str
    checkpoint: Path
    directory: Path
    grid: Grid
    target: int | None = None
    axes: Mapping[str, int] = field(default_factory=dict)
    reading: Reading = AS_STORED
    recipe: str | None = None
    tie: str | None = None
    state: StateOptions = field(default_factory=StateOptions)
    noise_mode: Mode = "free"
    noise_scale: Scale = "spectral"
    noise_on: tuple[str, ...] = ()
    training: Training = Training()
    data: Path | None = None
    data_type: str = "auto"
    command: str | None = None
    proxy: Proxy | None = None

    @property
    def largest(self) -> int:
        """Width of the large model over the checkpoint's, or that of the widest trained model if it is not said."""
        return self.target or self.grid.factors[-1]

    def perturbation(self, size: float) -> Perturbation:
        """Return the noise of a point of the grid, without a seed.

        Raises:
            PlanError: the size, the mode or the scale is invalid.
        """
        return Perturbation(size, self.noise_mode, self.noise_scale, on=self.noise_on)

    @property
    def narrow(self) -> Path:
        """Path of the model to widen: the checkpoint, or the proxy in its place."""
        return self.directory / "proxy" if self.proxy else self.checkpoint

    def find_source(self) -> Source:
        """Open the checkpoint.

        Raises:
            MupscaleError: it is missing or invalid.
        """
        return find_source(str(self.checkpoint), self.reading, recipe=self.recipe)

    def find_narrow(self) -> Source:
        """Open the model to widen: the checkpoint, or the proxy in its place, which must exist.

        Raises:
            MupscaleError: it is missing or invalid.
        """
        return find_source(str(self.narrow)) if self.proxy else self.find_source()

    @property
    def title(self) -> str:
        """Title of the sweep in pictures."""
        return f"{self.name}, narrowed {self.proxy.ratio} times" if self.proxy else self.name

    @property
    def loss(self) -> str:
        """Name of the trials' loss."""
        return loss_name(is_own=self.command is not None)

    @property
    def fixed(self) -> dict[str, Any]:
        """Settings that all trials of a study share, as JSON values. The grid may grow; these may not change."""
        training = {**asdict(self.training), "betas": list(self.training.betas), "optimizer": _OPTIMIZER}
        del training["device"]  # the device does not change the result
        return {
            "checkpoint": str(self.checkpoint),
            "axes": dict(self.axes),
            "reading": list(self.reading.options),
            "recipe": self.recipe,
            "tie": self.tie,
            "optimizer_state": {"path": str(self.state.optimizer), "policy": self.state.policy},
            "noise_mode": self.noise_mode,
            "noise_scale": self.noise_scale,
            "noise_on": list(self.noise_on),
            "training": training if self.command is None or self.proxy else None,
            "data": None if self.data is None else str(self.data),
            "command": self.command,
            "proxy": None if self.proxy is None else asdict(self.proxy),
        }


def loss_name(*, is_own: bool) -> str:
    """Name the loss of the user's own trainer or of the built-in one."""
    return "loss of the command" if is_own else "held-out loss in nats per token"

"""Create each widened checkpoint of a sweep once, and remove it when no trial needs it any more."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from filelock import FileLock

from mupscale_cli.sweep.grid import Point
from mupscale_cli.sweep.settings import Sweep
from mupscale_cli.tasks.widen import widen


def checkpoints_folder(sweep: Sweep) -> Path:
    """Return the folder of a sweep's widened checkpoints."""
    return sweep.directory / "checkpoints"


def checkpoint_name(point: Point) -> str:
    """Name a point's checkpoint; without noise, all seeds share it."""
    return f"x{point.factor}" + (f"-noise{point.noise!r}-seed{point.seed}" if point.noise else "")


def make_widened(sweep: Sweep, point: Point) -> Path:
    """Widen the narrow model for a point unless its checkpoint exists; return the checkpoint's path.

    Raises:
        MupscaleError: the narrow model cannot be widened.
    """
    source = sweep.find_narrow()
    name = checkpoint_name(point)
    path = checkpoints_folder(sweep) / (name + (source.suffix if source.checkpoint.is_file else ""))
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.parent / f"{name}.lock"):
        if not path.exists():
            noise: dict[str, Any] = {}
            if point.noise:
                details = {"noise_mode": sweep.noise_mode, "noise_scale": sweep.noise_scale}
                noise = {"noise": point.noise, **details, "noise_on": sweep.noise_on, "seed": point.seed}
            widen(
                source,
                path,
                point.factor,
                sweep.axes,
                recipe=sweep.recipe,
                tie=sweep.tie,
                optimizer=sweep.state.optimizer,
                optimizer_kind=sweep.state.kinds,
                optimizer_policy=sweep.state.policy,
                key=sweep.state.key,
                verify=False,
                **noise,
            )
    return path


def remove_unneeded(sweep: Sweep, point: Point, unfinished: Iterable[Point]) -> None:
    """Remove a point's checkpoint unless an unfinished trial needs it, to save disk space."""
    name = checkpoint_name(point)
    if any(checkpoint_name(other) == name for other in unfinished):
        return
    shutil.rmtree(checkpoints_folder(sweep) / name, ignore_errors=True)
    for file in checkpoints_folder(sweep).glob(f"{name}.*"):
        if file.is_file() and not file.name.endswith(".lock"):
            file.unlink(missing_ok=True)

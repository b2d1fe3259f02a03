"""The widened checkpoints of a sweep: made once each, removed when no trial needs them any more."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from filelock import FileLock

from mupscale_cli.sweep.grid import Point
from mupscale_cli.sweep.settings import Sweep
from mupscale_cli.tasks.source import find_source
from mupscale_cli.tasks.widen import widen


def folder(sweep: Sweep) -> Path:
    """Where they are."""
    return sweep.directory / "checkpoints"


def name_of(point: Point) -> str:
    """What a point's checkpoint is called: without noise the seed does not matter."""
    return f"x{point.factor}" + (f"-noise{point.noise!r}-seed{point.seed}" if point.noise else "")


def make_widened(sweep: Sweep, point: Point) -> Path:
    """The checkpoint of a point, made if it is not there.

    Raises:
        MupscaleError: it cannot be widened.
    """
    source = find_source(str(sweep.narrow))
    path = folder(sweep) / (name_of(point) + (".safetensors" if source.checkpoint.is_file else ""))
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.parent / f"{name_of(point)}.lock"):
        if not path.exists():
            noise: dict[str, Any] = {}
            if point.noise:
                details = {"noise_mode": sweep.noise_mode, "noise_scale": sweep.noise_scale}
                noise = {"noise": point.noise, **details, "seed": point.seed}
            widen(
                source,
                path,
                point.factor,
                sweep.axes,
                recipe=sweep.recipe,
                tie=sweep.tie,
                optimizer=sweep.state.optimizer,
                optimizer_policy=sweep.state.policy,
                key=sweep.state.key,
                allow_pickle=sweep.state.allow_pickle,
                verify=False,
                **noise,
            )
    return path


def remove_unneeded(sweep: Sweep, point: Point, unfinished: Iterable[Point]) -> None:
    """Remove a point's checkpoint unless an unfinished trial needs it too: disks are smaller than grids."""
    name = name_of(point)
    if any(name_of(other) == name for other in unfinished):
        return
    shutil.rmtree(folder(sweep) / name, ignore_errors=True)
    for file in folder(sweep).glob(f"{name}.*"):
        if file.is_file() and not file.name.endswith(".lock"):
            file.unlink(missing_ok=True)

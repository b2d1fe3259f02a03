"""A sweep's result as JSON: written beside the study, read by `mupscale hparams --from-sweep`. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from mupscale_cli.checkpoints.json_files import parse_json
from mupscale_cli.errors import SweepError
from mupscale_cli.optimizers.multipliers import Scaled
from mupscale_cli.optimizers.recorded import scaled_tensors
from mupscale_cli.sweep.grid import Grid, Point
from mupscale_cli.sweep.result import Cell, Findings, Trial, find
from mupscale_cli.sweep.settings import Sweep, loss_name


def sweep_document(
    sweep: Sweep, trials: Iterable[Trial], findings: Findings, proxy: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Everything as plain values; a function of the sweep and its losses, not of when or where they were computed.

    Args:
        sweep: what was asked for.
        trials: the finished ones.
        findings: what they say.
        proxy: how the checkpoint follows from the proxy, None where there is none.
    """
    from mupscale_cli.record.documents import document_head

    grid, found = findings.grid, findings.recommendation
    fixed = sweep.fixed
    return {
        **document_head("sweep"),
        "complete": findings.num_missing == 0,
        **fixed,
        "proxy": None if proxy is None else {**(fixed["proxy"] or {}), **proxy},
        "grid": {
            "factors": list(grid.factors),
            "lrs": list(grid.lrs),
            "noises": list(grid.noises),
            "seeds": list(grid.seeds),
        },
        "trials": [
            {
                "factor": t.point.factor,
                "noise": t.point.noise,
                "lr": t.point.lr,
                "seed": t.point.seed,
                "loss": t.loss,
                "diverged": t.loss is None,
            }
            for t in trials
        ],
        "cells": [_cell(cell) for cell in findings.cells],
        "optima": [_cell(cell) for cell in findings.optima],
        "recommendation": None
        if found is None
        else {
            "lr": found.lr,
            "noise": found.noise,
            "noise_mode": sweep.noise_mode,
            "noise_scale": sweep.noise_scale,
            "target": sweep.target,
            "lr_shift": found.lr_shift,
            "noise_shift": found.noise_shift,
            "warnings": list(found.warnings),
        },
    }


def _cell(cell: Cell) -> dict[str, Any]:
    return {
        "factor": cell.factor,
        "noise": cell.noise,
        "lr": cell.lr,
        "loss": cell.loss,
        "spread": cell.spread,
        "num_seeds": len(cell.losses) + cell.num_diverged,
        "num_diverged": cell.num_diverged,
    }


@dataclass(frozen=True)
class Found:
    """What `hparams` takes from a sweep.

    Attributes:
        lr: the recommended one.
        noise: the recommended size of the perturbation.
        noise_mode: its mode.
        noise_scale: its scale.
        optimizer: its name; None where the user's own trainer was run.
        weight_decay: of the narrow run; None with the user's own trainer, as below.
        betas: of the optimizer.
        eps: of the optimizer.
        warnings: reasons not to rely on it.
        proxy: how the narrow checkpoint's tensors follow from those of the proxy, by name; empty without a proxy.
    """

    lr: float
    noise: float
    noise_mode: str
    noise_scale: str
    optimizer: str | None
    weight_decay: float | None
    betas: tuple[float, float] | None
    eps: float | None
    warnings: tuple[str, ...]
    proxy: Mapping[str, Scaled]


def read_sweep(file: Path) -> Found:
    """Read what `mupscale sweep` wrote.

    Raises:
        SweepError: it is no such file, of a later version, damaged, or without a result.
    """
    content = _read(file)
    if content["recommendation"] is None:
        raise SweepError(f"`{file}` recommends nothing: no trial has ended well", hint="give the sweep smaller `--lr`")
    try:
        return _found(content)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(file, error) from error


def read_findings(file: Path) -> tuple[Findings, str, str]:
    """What a sweep found, complete or not; its title, and what its loss is.

    Raises:
        SweepError: it is no such file, of a later version, or damaged.
    """
    content = _read(file)
    try:
        grid = Grid(*(tuple(content["grid"][key]) for key in ("factors", "lrs", "noises", "seeds")))
        trials = [
            Trial(Point(t["factor"], t["noise"], t["seed"], t["lr"]), None if t["loss"] is None else float(t["loss"]))
            for t in content["trials"]
        ]
        name = PurePath(str(content["checkpoint"])).stem
        title = f"{name}, narrowed {content['proxy']['ratio']} times" if content["proxy"] else name
        return find(grid, trials), title, loss_name(is_own=content["command"] is not None)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> SweepError:
    return SweepError(f"`{file}` is damaged: {error!r}", hint="run the sweep again: finished trials are kept")


def _read(file: Path) -> dict[str, Any]:
    """The document of a sweep."""
    if file.is_dir():
        file /= "sweep.json"
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SweepError(f"cannot read `{file}`: {error}", hint="give the sweep.json of `mupscale sweep`") from error
    except ValueError as error:
        raise SweepError(f"`{file}` is not valid JSON: {error}") from error
    if not isinstance(content, dict) or "recommendation" not in content or "grid" not in content:
        raise SweepError(f"`{file}` was not written by `mupscale sweep`", hint="give its sweep.json")
    from mupscale_cli.record.documents import VERSIONS

    version, known = content.get("schema_version"), VERSIONS["sweep"]
    if version != known:
        raise SweepError(f"`{file}` has format {version!r}, this mupscale reads {known}", hint="upgrade mupscale")
    return content


def _found(content: Mapping[str, Any]) -> Found:
    best, training = content["recommendation"], content["training"] or {}
    if content["command"] is not None:
        training = {}  # the user's own trainer decides about these
    lr, noise = float(best["lr"]), float(best["noise"])
    if not (0 < lr < math.inf and 0 <= noise < math.inf):
        raise ValueError(f"lr {lr:g}, noise {noise:g}")
    betas = training.get("betas")
    warnings = tuple(str(warning) for warning in best["warnings"])
    if not content["complete"]:
        warnings = ("the sweep is not complete", *warnings)
    return Found(
        lr,
        noise,
        str(best["noise_mode"]),
        str(best["noise_scale"]),
        training.get("optimizer"),
        _optional(training.get("weight_decay")),
        None if betas is None else (float(betas[0]), float(betas[1])),
        _optional(training.get("eps")),
        warnings,
        {t.name: t for t in scaled_tensors(content["proxy"])} if content["proxy"] else {},
    )


def _optional(value: Any) -> float | None:
    return None if value is None else float(value)

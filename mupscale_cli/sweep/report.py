"""Convert a sweep's result to JSON for its directory, and read it for `mupscale hparams --from-sweep`. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

from mupscale_cli.checkpoints.json_files import parse_json
from mupscale_cli.errors import PlanError, SweepError
from mupscale_cli.files import read_errors, read_text
from mupscale_cli.optimizers.multipliers import ScaledTensor
from mupscale_cli.optimizers.recorded import scaled_tensors
from mupscale_cli.plan.perturbation import Perturbation
from mupscale_cli.sweep.cost import Cost
from mupscale_cli.sweep.grid import Grid, Point
from mupscale_cli.sweep.result import Cell, Findings, Trial, evaluate_trials
from mupscale_cli.sweep.settings import Sweep, loss_name


def sweep_document(
    sweep: Sweep, trials: Iterable[Trial], findings: Findings, proxy: Mapping[str, Any] | None, cost: Cost
) -> dict[str, Any]:
    """Return a sweep's result as a JSON document. It depends only on the settings and the losses, not on dates.

    Args:
        sweep: settings of the sweep.
        trials: finished trials.
        findings: results of these trials.
        proxy: how the checkpoint is widened from the proxy, None without a proxy.
        cost: what the sweep costs.
    """
    from mupscale_cli.record.documents import document_head

    grid, best, fixed = findings.grid, findings.recommendation, sweep.fixed
    return {
        **document_head("sweep"),
        "complete": findings.num_missing == 0,
        **fixed,
        "proxy": None if proxy is None else {**(fixed["proxy"] or {}), **proxy},
        "cost": cost.as_record(),
        "grid": {name: list(values) for name, values in asdict(grid).items()},
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
        if best is None
        else {
            "lr": best.lr,
            "noise": best.noise,
            "noise_mode": sweep.noise_mode,
            "noise_scale": sweep.noise_scale,
            "noise_on": list(sweep.noise_on),
            "target": sweep.target,
            "lr_shift": best.lr_shift,
            "noise_shift": best.noise_shift,
            "warnings": list(best.warnings),
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
class SweptHyperparameters:
    """Hyperparameters that `hparams` takes from a sweep.

    With the user's own trainer, `optimizer`, `weight_decay`, `betas` and `eps` are None.

    Attributes:
        lr: recommended learning rate in the narrow run's terms.
        noise: recommended noise, without a seed.
        optimizer: name of the optimizer.
        weight_decay: weight decay of the narrow run.
        betas: the optimizer's betas.
        eps: the optimizer's eps.
        warnings: reasons not to rely on the recommendation.
        proxy: how the narrow checkpoint's tensors are scaled from the proxy's, by name; empty without a proxy.
    """

    lr: float
    noise: Perturbation
    optimizer: str | None
    weight_decay: float | None
    betas: tuple[float, float] | None
    eps: float | None
    warnings: tuple[str, ...]
    proxy: Mapping[str, ScaledTensor]


def read_sweep(file: Path) -> SweptHyperparameters:
    """Read the recommendation of a `sweep.json` or a sweep's directory.

    Raises:
        SweepError: the file is not a `sweep.json`, has another version, is damaged, or recommends nothing.
    """
    content = _read(file)
    if content["recommendation"] is None:
        raise SweepError(
            f"`{file}` has no recommendation: no trial has succeeded", hint="run the sweep with smaller `--lr`"
        )
    try:
        return _hyperparameters(content)
    except (KeyError, TypeError, ValueError, PlanError) as error:
        raise _damaged(file, error) from error


def read_findings(file: Path) -> tuple[Findings, str, str]:
    """Read the results of a sweep, complete or not.

    Returns:
        The findings, the sweep's title, and the name of its loss.

    Raises:
        SweepError: the file is not a `sweep.json`, has another version, or is damaged.
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
        return evaluate_trials(grid, trials), title, loss_name(is_own=content["command"] is not None)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> SweepError:
    return SweepError(f"`{file}` is damaged: {error!r}", hint="run the sweep again; finished trials are kept")


def _read(file: Path) -> dict[str, Any]:
    """Read the JSON document of a sweep and check its version."""
    if file.is_dir():
        file /= "sweep.json"
    with read_errors(file, SweepError):
        text = read_text(file)
    try:
        content = parse_json(text)
    except ValueError as error:
        raise SweepError(f"`{file}` is not valid JSON: {error}") from error
    if not isinstance(content, dict) or "recommendation" not in content or "grid" not in content:
        raise SweepError(f"`{file}` was not written by `mupscale sweep`", hint="give its sweep.json")
    from mupscale_cli.record.documents import VERSIONS

    version, known = content.get("schema_version"), VERSIONS["sweep"]
    if version != known:
        raise SweepError(f"`{file}` has version {version!r}, this mupscale reads {known}", hint="upgrade mupscale")
    return content


def _hyperparameters(content: Mapping[str, Any]) -> SweptHyperparameters:
    best, training = content["recommendation"], content["training"] or {}
    if content["command"] is not None:
        training = {}  # the user's own trainer sets these
    if not 0 < (lr := float(best["lr"])) < math.inf:
        raise ValueError(f"lr {lr:g}")
    betas = training.get("betas")
    warnings = tuple(str(warning) for warning in best["warnings"])
    if not content["complete"]:
        warnings = ("the sweep is not complete", *warnings)
    return SweptHyperparameters(
        lr,
        Perturbation(float(best["noise"]), best["noise_mode"], best["noise_scale"], on=tuple(best["noise_on"])),
        training.get("optimizer"),
        _optional(training.get("weight_decay")),
        None if betas is None else (float(betas[0]), float(betas[1])),
        _optional(training.get("eps")),
        warnings,
        {t.name: t for t in scaled_tensors(content["proxy"])} if content["proxy"] else {},
    )


def _optional(value: Any) -> float | None:
    return None if value is None else float(value)

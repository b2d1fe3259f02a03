"""What a sweep costs, compared with tuning at the target. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import Any

from mupscale_cli.reports.guidance import guidance
from mupscale_cli.sweep.settings import Sweep
from mupscale_cli.tasks.planning import plan_widening
from mupscale_cli.tasks.source import Source


@dataclass(frozen=True)
class Cost:
    """Floating-point operations of a forward pass per token, to which those of training are proportional.

    Attributes:
        target: of the large model.
        trials: of the trained models, by their width over that of the narrow one.
        proxy: of the proxy; None without one.
        total: all trials and the training of the proxy, in trials at the target; None if the user's own trainer
            decides how long they are.
    """

    target: int
    trials: dict[int, int]
    proxy: int | None
    total: float | None

    @property
    def saved(self) -> float:
        """How many times cheaper a trial is than one at the target: F(n)/F(n0) of arXiv 2602.10545."""
        return self.target / fmean(self.trials.values())

    def as_record(self) -> dict[str, Any]:
        """Return the object that sweep.json contains."""
        trials = [{"factor": factor, "flops_per_token": flops} for factor, flops in self.trials.items()]
        return {"target": self.target, "trials": trials, "proxy": self.proxy, "saved": self.saved, "total": self.total}


def sweep_cost(settings: Sweep) -> Cost:
    """Compute the cost of a sweep whose narrow model exists.

    Raises:
        MupscaleError: the narrow model cannot be widened.
    """
    _, target = _flops(settings, settings.find_source(), settings.largest)
    narrow = settings.find_narrow()
    flops = {factor: _flops(settings, narrow, factor) for factor in settings.grid.factors}
    trials = {factor: wide for factor, (_, wide) in flops.items()}
    before = next(iter(flops.values()))[0]
    steps = settings.training.steps
    spent = len(settings.grid) * fmean(trials.values()) * steps
    if settings.proxy is not None:
        spent += settings.proxy.steps * before
    total = spent / (target * steps) if settings.command is None else None
    return Cost(target, trials, before if settings.proxy is not None else None, total)


def _flops(settings: Sweep, source: Source, factor: int) -> tuple[int, int]:
    """Return the operations of a model and of the one that it is widened to."""
    plan = plan_widening(source, factor=factor, axes=settings.axes, recipe=settings.recipe, tie=settings.tie)
    return guidance(plan).flops

"""lingua: one distributed checkpoint a step, with progress and the run's config beside it."""

from __future__ import annotations

from mupscale_cli.checkpoints.containers.kinds import DISTRIBUTED
from mupscale_cli.checkpoints.layouts.base import ConfigPlace, Layout


def _next_lines(path: str) -> tuple[str, ...]:
    """Name the line of apps/main/train.py that has to know the groups of the wide model."""
    return (
        f"# continue with the section `model` of {path}/params.json, and in apps/main/train.py:",
        "  optimizer, scheduler = build_optimizer(model, args.optim, args.steps)",
        f"+ import mupscale; mupscale.scale_optimizer(optimizer, model, {path!r}, schedulers=[scheduler])",
    )


LINGUA = Layout(
    name="lingua",
    title="lingua",
    container=DISTRIBUTED,
    patterns=(".metadata",),
    marks=("model.layers.0.feed_forward.w1.weight", "optim"),
    weights=("model",),
    state=("optim",),
    optimizers=lambda *_: ("AdamW",),  # the only one that it makes
    config=ConfigPlace("params.json", "model"),
    schedules=("train_state_*.json",),
    recipe="lingua",
    own_code="beside its folder `apps`",
    next_lines=_next_lines,
)

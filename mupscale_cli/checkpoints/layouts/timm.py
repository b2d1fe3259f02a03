"""timm's training script: one file with weights, their average, the optimizer's state and the arguments of the run."""

from __future__ import annotations

from shlex import quote

from mupscale_cli.checkpoints.layouts.base import Layout


def _next_lines(path: str) -> tuple[str, ...]:
    """Name the option that resumes, and the line of train.py that has to know the groups of the wide model."""
    wide = quote(path)
    create = "optimizer = create_optimizer_v2("
    return (
        f"python train.py --resume {wide} --model-kwargs ...  # the `model_args` of the wide config.json, as KEY=VALUE",
        f"# with the narrow run's options, and this line of train.py after `{create}...)`:",
        f"+ import mupscale; mupscale.scale_optimizer(optimizer, model, {path!r})",
    )


TIMM = Layout(
    name="timm",
    title="timm",
    patterns=("last.pth.tar", "model_best.pth.tar", "checkpoint-*.pth.tar"),
    marks=("arch", "version", "state_dict"),
    weights=("state_dict",),
    state=("optimizer",),
    next_lines=_next_lines,
)

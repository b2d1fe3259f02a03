"""OLMo-core: weights and optimizer state in one distributed checkpoint, progress and the run's config beside it."""

from __future__ import annotations

from mupscale_cli.checkpoints.containers.kinds import DISTRIBUTED
from mupscale_cli.checkpoints.layouts.base import ConfigPlace, Layout


def _next_lines(path: str) -> tuple[str, ...]:
    return (
        f"mupscale hparams {path} --lr LR --weight-decay WD --decay all --json > hparams.json  # the narrow run's own",
        f"# continue with the sizes in {path}/config.json, its groups as `group_overrides`, and `load_path={path}`",
    )


OLMO_CORE = Layout(
    name="olmo-core",
    title="OLMo-core",
    container=DISTRIBUTED,
    patterns=("model_and_optim/.metadata",),
    weights=("model",),
    state=("optim",),
    config=ConfigPlace("config.json", "model"),
    carried=("train/rank*.pt", ".metadata.json", "data_paths.txt"),
    recipe="olmo_core",
    next_lines=_next_lines,
)

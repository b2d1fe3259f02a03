"""composer and llm-foundry: everything in one file, with optimizers and schedulers under the names of their classes.

With FSDP and `state_dict_type: sharded`, the same content is a distributed checkpoint.
"""

from __future__ import annotations

from dataclasses import replace

from mupscale_cli.checkpoints.containers.kinds import DISTRIBUTED
from mupscale_cli.checkpoints.layouts.base import ConfigPlace, Layout


def _next_lines(path: str) -> tuple[str, ...]:
    return (
        "# with a model of the wide sizes; a callback replaces `GradientClipping` (page `trainers`):",
        "import mupscale",
        f"mupscale.scale_optimizer(optimizer, model, {path!r})",
        f"Trainer(model=model, optimizers=optimizer, load_path={path!r})  # and the narrow run's arguments",
    )


COMPOSER = Layout(
    name="composer",
    title="composer",
    patterns=("ep*-ba*-rank0.pt", "latest-rank0.pt"),
    marks=("state.model", "state.optimizers", "state.timestamp"),
    weights=("state.model",),
    state=("state.optimizers.*",),
    optimizers=lambda place, _: (str(place[-1]),),  # the groups of DecoupledAdamW are those of AdamW
    config=ConfigPlace(key="state.integrations.huggingface.model.config.content"),
    next_lines=_next_lines,
)
COMPOSER_SHARDED = replace(
    COMPOSER, name="composer-sharded", container=DISTRIBUTED, patterns=(".metadata", "ep*-ba*/.metadata")
)

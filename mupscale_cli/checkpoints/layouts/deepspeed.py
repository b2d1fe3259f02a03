"""DeepSpeed: the folder of a step, with ZeRO's files."""

from __future__ import annotations

from mupscale_cli.checkpoints.containers.kinds import ZERO
from mupscale_cli.checkpoints.layouts.base import Layout

_FILES = ("zero/optimizer_state.pt", "zero_pp_rank_*_optim_states.pt", "bf16_zero_pp_rank_*_optim_states.pt")


def _next_lines(path: str) -> tuple[str, ...]:
    return (
        '# set `"checkpoint": {"load_universal": true}` in the DeepSpeed config, and make the optimizer with',
        "import mupscale",
        f"groups = mupscale.param_groups(model, {path!r}, lr=LR, weight_decay=WD)  # LR and WD of the narrow run",
        f"engine.load_checkpoint({path!r})  # in stage 3, two repairs follow: page `trainers`",
    )


DEEPSPEED = Layout(
    "deepspeed",
    "DeepSpeed",
    ZERO,
    (*(f"*/{file}" for file in _FILES), *_FILES),
    weights=("module",),
    state=("optimizer",),
    pointers=lambda name: {"latest_universal": name},
    next_lines=_next_lines,
)

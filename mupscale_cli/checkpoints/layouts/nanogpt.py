"""nanoGPT: one file of everything, which `train.py --init_from=resume` reads back."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

from mupscale_cli.checkpoints.layouts.base import ConfigPlace, Layout

_LOAD = "optimizer.load_state_dict(checkpoint['optimizer'])"
_IS_WIDE = "'lr_factor' in checkpoint['optimizer']['param_groups'][0]"  # so that the script still serves narrow runs


def _next_lines(path: str) -> tuple[str, ...]:
    """Name the lines of train.py that have to know the groups of the wide model."""
    folder, widened = (str(Path(path).parent), repr(path)) if Path(path).is_file() else (path, "out_dir")
    return (
        f"python train.py --init_from=resume --out_dir={quote(folder)}  # with the options of the narrow run, and:",
        f"- {_LOAD}",
        f"+ import mupscale; {_IS_WIDE} and mupscale.scale_optimizer(optimizer, model, {widened}); {_LOAD}",
        "- param_group['lr'] = lr",
        "+ param_group['lr'] = lr * param_group.get('lr_factor', 1.0)",
        "- torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip)",
        "+ import mupscale; mupscale.clip_grad_norm_(optimizer, grad_clip)",
    )


NANOGPT = Layout(
    name="nanogpt",
    title="nanoGPT",
    patterns=("ckpt.pt",),
    marks=("model", "model_args", "iter_num"),
    weights=("model",),
    state=("optimizer",),
    optimizers=lambda *_: ("AdamW",),  # the groups say so only since torch 2.7
    config=ConfigPlace(key="model_args"),
    recipe="nanogpt",
    own_code="beside its model.py",
    next_lines=_next_lines,
)

"""litgpt: `lit_model.pth`, with the optimizer while it pretrains, and the sizes in `model_config.yaml` beside it."""

from __future__ import annotations

from collections.abc import Mapping
from shlex import quote
from typing import TYPE_CHECKING, Any

from mupscale_cli.checkpoints.layouts.base import ConfigPlace, Layout
from mupscale_cli.checkpoints.libraries import Library

if TYPE_CHECKING:
    from torch import nn


_IS_WIDE = 'resume and (resume.parent / "mupscale.json").exists()'  # so that the code still serves narrow runs


def _build(litgpt: Any, config: Mapping[str, Any]) -> nn.Module:
    model: nn.Module = litgpt.GPT(litgpt.Config(**config))
    return model


def _next_lines(path: str) -> tuple[str, ...]:
    """Name the lines of litgpt/pretrain.py that have to know the groups of the wide model."""
    prepare = "optimizer = fabric.setup_optimizers(optimizer)"
    wide = quote(path)
    return (
        f"litgpt pretrain --model_config {wide}/model_config.yaml --resume {wide}/lit_model.pth",
        "# with the narrow run's options, and these lines of litgpt/pretrain.py:",
        f"- {prepare}",
        f"+ import mupscale; {_IS_WIDE} and mupscale.scale_optimizer(optimizer, model, resume.parent); {prepare}",
        '- param_group["lr"] = lr',
        '+ param_group["lr"] = lr * param_group.get("lr_factor", 1.0)',
        "- fabric.clip_gradients(model, optimizer, max_norm=train.max_norm)",
        "+ import mupscale; mupscale.clip_grad_norm_(optimizer, train.max_norm)",
    )


_OWN = "transformer.h.0.attn.qkv.weight"
LITGPT = Layout(
    name="litgpt",
    title="litgpt",
    patterns=("lit_model.pth",),
    marks=((_OWN, f"model.{_OWN}"),),
    weights=("model", ""),
    state=("optimizer",),
    config=ConfigPlace(file="model_config.yaml"),
    recipe="litgpt",
    library=Library("litgpt", None, "mlp_class_name", _build),
    next_lines=_next_lines,
)

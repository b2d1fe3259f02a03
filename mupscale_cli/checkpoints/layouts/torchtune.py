"""torchtune's own checkpointer: a bare state dict, beside the config.json of the model that it fine-tunes."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from mupscale_cli.checkpoints.containers.kinds import TORCH_FILE
from mupscale_cli.checkpoints.layouts.base import Layout, StateFiles
from mupscale_cli.checkpoints.libraries import Library

if TYPE_CHECKING:
    from torch import nn


def _build(builder: str, torchtune: Any, config: Mapping[str, Any]) -> nn.Module:
    """Build a model of torchtune from the config of transformers."""
    module = importlib.import_module(f"{torchtune.__name__}.models.{builder}")
    heads = config["num_attention_heads"]
    tied = {"tie_word_embeddings": True} if config.get("tie_word_embeddings") else {}
    model: nn.Module = getattr(module, builder)(
        vocab_size=config["vocab_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=config.get("num_key_value_heads") or heads,
        embed_dim=config["hidden_size"],
        intermediate_dim=config["intermediate_size"],
        max_seq_len=config.get("max_position_embeddings", 64),
        norm_eps=config["rms_norm_eps"],
        **tied,
    )
    return model


def _next_lines(path: str) -> tuple[str, ...]:
    """Name what the run's config and its recipe have to know of the wide model."""
    parent, name = (quote(part) for part in (str(Path(path).parent), Path(path).name))
    return (
        f"tune run RECIPE --config RUN.yaml resume_from_checkpoint=True checkpointer.output_dir={parent} \\",
        f"  checkpointer.checkpoint_files=[{name}/model-00001-of-00001.bin] \\",
        f"  checkpointer.recipe_checkpoint={name}/recipe_state.pt  # and the wide sizes in the section `model`",
        "# with this line in `_setup_optimizer` of the recipe (`tune cp RECIPE FILE` copies it):",
        "  optimizer = config.instantiate(cfg_optimizer, self._model.parameters())",
        f"+ import mupscale; mupscale.scale_optimizer(optimizer, self._model, {path!r})",
    )


_PATTERNS = ("model-00001-of-00001.bin", "ft-model-*.bin", "*.pt")
_PROGRESS = frozenset({"epochs_run", "total_epochs", "max_steps_per_epoch"})
_MARKS = ("layers.0.attn.output_proj.weight", "layers.0.sa_norm.scale")

TORCHTUNE = Layout(
    name="torchtune",
    title="torchtune",
    patterns=_PATTERNS,
    marks=_MARKS,
    weights=("",),
    state_files=StateFiles(lambda _: "recipe_state.pt", lambda *_: TORCH_FILE, _PROGRESS),
    recipe="torchtune",
    library=Library("torchtune", None, "model_type", partial(_build, "llama3")),
    next_lines=_next_lines,
)
TORCHTUNE_QWEN = replace(
    TORCHTUNE,
    name="torchtune-qwen",
    marks=(*_MARKS, "layers.0.attn.q_proj.bias"),
    recipe="torchtune_qwen",
    library=Library("torchtune", None, "model_type", partial(_build, "qwen2")),
)

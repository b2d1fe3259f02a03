"""torchtune's own checkpointer: a bare state dict, beside the config.json of the model that it fine-tunes."""

from __future__ import annotations

from mupscale_cli.checkpoints.layouts.base import Layout

_PATTERNS = ("ft-model-*.bin", "*.pt")
_MARKS = ("layers.0.attn.output_proj.weight", "layers.0.sa_norm.scale")

TORCHTUNE = Layout(
    name="torchtune", title="torchtune", patterns=_PATTERNS, marks=_MARKS, weights=("",), recipe="torchtune"
)
TORCHTUNE_QWEN = Layout(
    name="torchtune-qwen",
    title="torchtune's Qwen2",
    patterns=_PATTERNS,
    marks=(*_MARKS, "layers.0.attn.q_proj.bias"),
    weights=("",),
    recipe="torchtune_qwen",
)

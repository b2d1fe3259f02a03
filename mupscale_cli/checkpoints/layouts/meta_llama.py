"""Meta's Llama: a bare state dict in `consolidated.00.pth`, and the sizes in `params.json` beside it."""

from __future__ import annotations

from mupscale_cli.checkpoints.layouts.base import ConfigPlace, Layout

META_LLAMA = Layout(
    name="meta-llama",
    title="Meta's Llama",
    patterns=("consolidated.00.pth",),
    marks=("tok_embeddings.weight", "layers.0.attention.wq.weight"),
    weights=("",),
    config=ConfigPlace("params.json"),
    recipe="meta_llama",
)

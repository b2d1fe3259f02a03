"""Meta's Llama: a state dict in one file for each process of model parallelism, and the sizes in `params.json`."""

from __future__ import annotations

from dataclasses import replace

from mupscale_cli.checkpoints.containers.kinds import CONSOLIDATED, TORCH_FILE
from mupscale_cli.checkpoints.layouts.base import ConfigPlace, Layout

META_LLAMA = Layout(
    name="meta-llama",
    title="Meta's Llama",
    container=CONSOLIDATED,
    patterns=("consolidated.[0-9][0-9].pth",),
    marks=("tok_embeddings.weight", "layers.0.attention.wq.weight"),
    weights=("",),
    config=ConfigPlace("params.json"),
    recipe="meta_llama",
    own_code="beside the folder `models` of llama-models",
)
# Under another name, as a script saves it that has read the original.
META_LLAMA_FILE = replace(META_LLAMA, name="meta-llama-file", container=TORCH_FILE, patterns=("*.pth", "*.pt", "*.bin"))

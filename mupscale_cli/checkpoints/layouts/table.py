"""The table of layouts. The first one that fits a checkpoint reads it."""

from __future__ import annotations

from mupscale_cli.checkpoints.containers.kinds import DISTRIBUTED, SHARDS
from mupscale_cli.checkpoints.layouts.base import Layout
from mupscale_cli.checkpoints.layouts.composer import COMPOSER, COMPOSER_SHARDED
from mupscale_cli.checkpoints.layouts.deepspeed import DEEPSPEED
from mupscale_cli.checkpoints.layouts.lightning import LIGHTNING
from mupscale_cli.checkpoints.layouts.lingua import LINGUA
from mupscale_cli.checkpoints.layouts.litgpt import LITGPT
from mupscale_cli.checkpoints.layouts.megatron import MEGATRON_LM
from mupscale_cli.checkpoints.layouts.meta_llama import META_LLAMA, META_LLAMA_FILE
from mupscale_cli.checkpoints.layouts.nanochat import NANOCHAT
from mupscale_cli.checkpoints.layouts.nanogpt import NANOGPT
from mupscale_cli.checkpoints.layouts.olmo_core import OLMO_CORE
from mupscale_cli.checkpoints.layouts.refused import FAIRSEQ, MODDED_NANOGPT, NEMO
from mupscale_cli.checkpoints.layouts.timm import TIMM
from mupscale_cli.checkpoints.layouts.torchtitan import TORCHTITAN
from mupscale_cli.checkpoints.layouts.torchtune import TORCHTUNE, TORCHTUNE_QWEN
from mupscale_cli.errors import CheckpointError
from mupscale_cli.text import listed

_STATE = (
    "optimizer",
    "optimizer_state_dict",
    "optimizer_state",
    "optim",
    "optimizers",
    "optimizer_states",
    "last_optimizer_state",
)

# The last three read any file and any folder that torch saved.
LAYOUTS: tuple[Layout, ...] = (
    META_LLAMA,  # first, since its files are also files of torch.save
    NANOGPT,
    TORCHTITAN,
    OLMO_CORE,
    LINGUA,
    LITGPT,
    LIGHTNING,
    COMPOSER,
    COMPOSER_SHARDED,
    TIMM,
    NANOCHAT,
    META_LLAMA_FILE,
    TORCHTUNE_QWEN,
    TORCHTUNE,
    DEEPSPEED,
    NEMO,
    MEGATRON_LM,
    FAIRSEQ,
    MODDED_NANOGPT,
    Layout(
        "torch-shards",
        "torch.save in shards",
        SHARDS,
        ("pytorch_model.bin.index.json", "*.bin.index.json"),
        weights=("weights",),
    ),
    Layout("torch", "torch.save", patterns=("*.pt", "*.pth", "*.ckpt", "*.bin"), state=_STATE),
    Layout(
        "distributed",
        "torch.distributed.checkpoint",
        DISTRIBUTED,
        (".metadata", "pytorch_model_fsdp_0/.metadata", "model/.metadata"),
        state=_STATE,
    ),
)


def layout_called(name: str) -> Layout:
    """Return a layout by its name.

    Raises:
        CheckpointError: there is none.
    """
    found = next((layout for layout in LAYOUTS if layout.name == name), None)
    if found is None:
        known = listed(layout.name for layout in LAYOUTS)
        raise CheckpointError(f"unknown layout `{name}`", hint=f"known: {known}")
    return found

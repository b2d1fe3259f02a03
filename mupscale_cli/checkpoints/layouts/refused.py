"""Trainers whose files are recognized but not widened. Each says why, and what to do instead."""

from __future__ import annotations

from mupscale_cli.checkpoints.containers.kinds import MEGATRON
from mupscale_cli.checkpoints.layouts.base import Layout, Refusal

_DESCRIBE = "describe the model in a recipe (`mupscale help language`), and pass `--layout torch --recipe FILE`"

FAIRSEQ = Layout(
    "fairseq",
    "fairseq",
    patterns=("checkpoint_last.pt", "checkpoint_best.pt", "checkpoint[0-9]*.pt", "checkpoint_*.pt"),
    marks=("optimizer_history", "extra_state", "model"),
    refusal=Refusal(
        reason="whose models no recipe describes: their sinusoidal positions depend on the width, and each update "
        "writes one learning rate into all groups",
        hint="convert the weights to a class of transformers, and widen those; or, if the positions are learned, "
        + _DESCRIBE,
    ),
)
MODDED_NANOGPT = Layout(
    "modded-nanogpt",
    "modded-nanogpt",
    patterns=("state_step*.pt",),
    marks=("code", "step", "model", "optimizers"),
    refusal=Refusal(
        reason="each of whose scripts trains another model",
        hint=f"{_DESCRIBE}; the script is in the file, under `code`",
    ),
)
NEMO = Layout(
    "nemo",
    "NeMo 2",
    MEGATRON,
    patterns=("weights/common.pt", "*/weights/common.pt", "common.pt"),
    marks=("common.pytorch-lightning_version",),
    refusal=Refusal(
        reason="which keeps the sizes of the model in `context`, in a form of its own",
        hint="`nemo llm export path=DIR target=hf output_path=OUT`, with the folder that contains `weights` and "
        "`context`, writes a model of transformers; widen that",
    ),
)

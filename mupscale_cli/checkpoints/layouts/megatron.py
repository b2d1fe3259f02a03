"""Megatron-LM and Megatron-Bridge: the folder of an iteration in the format `torch_dist`."""

from __future__ import annotations

from shlex import quote

from mupscale_cli.checkpoints.containers.kinds import MEGATRON
from mupscale_cli.checkpoints.layouts.base import ConfigPlace, Layout


def _next_lines(path: str) -> tuple[str, ...]:
    return (f"--load {quote(path)} --finetune --no-load-optim --no-load-rng  # Megatron starts with fresh moments",)


MEGATRON_LM = Layout(
    "megatron",
    "Megatron-LM",
    MEGATRON,
    ("iter_*/common.pt", "common.pt"),
    weights=("model",),
    config=ConfigPlace(key="common.args"),
    recipe="megatron",
    own_code="where `megatron.core` can be imported",
    about="the weights alone, since the groups of Megatron's optimizer do not name their parameters",
    pointers=lambda name: {"latest_checkpointed_iteration.txt": name.removeprefix("iter_").lstrip("0") or "0"},
    next_lines=_next_lines,
)

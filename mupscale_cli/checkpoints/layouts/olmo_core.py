"""OLMo-core: weights and optimizer state in one distributed checkpoint, progress and the run's config beside it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from shlex import quote
from typing import TYPE_CHECKING, Any

from mupscale_cli.checkpoints.containers.kinds import DISTRIBUTED
from mupscale_cli.checkpoints.layouts.base import ConfigPlace, Layout
from mupscale_cli.checkpoints.libraries import Library

if TYPE_CHECKING:
    from torch import nn


def _build(olmo_core: Any, config: Mapping[str, Any]) -> nn.Module:
    transformer = importlib.import_module(f"{olmo_core.__name__}.nn.transformer")
    model: nn.Module = transformer.TransformerConfig.from_dict(dict(config)).build(init_device="cpu")
    return model


def _optimizers(run: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the class of the run's optimizer; one that can skip steps takes the same ones."""
    name = run.get("train_module", {}).get("optim", {}).get("_CLASS_", "")
    return (name.rpartition(".")[2].removesuffix("Config").removeprefix("SkipStep"),) if name else ()


def _next_lines(path: str) -> tuple[str, ...]:
    wide = quote(path)
    return (
        f"mupscale hparams {wide} --lr LR --weight-decay WD --decay all --json > hparams.json  # the narrow run's own",
        f"# continue with the sizes in {path}/config.json, its groups as `group_overrides`, and `load_path={path}`",
    )


OLMO_CORE = Layout(
    name="olmo-core",
    title="OLMo-core",
    container=DISTRIBUTED,
    patterns=("model_and_optim/.metadata",),
    weights=("model",),
    state=("optim",),
    optimizers=lambda _, run: _optimizers(run),
    config=ConfigPlace("config.json", "model"),
    carried=("train/rank*.pt", ".metadata.json", "data_paths.txt"),
    recipe="olmo_core",
    library=Library("olmo_core", None, "_CLASS_", _build, distribution="ai2-olmo-core"),
    next_lines=_next_lines,
)

"""Load causal language models and tokenizers with transformers, for the built-in trainer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mupscale_cli.checkpoints.reading import Checkpoint
from mupscale_cli.errors import SweepError, install_extra
from mupscale_cli.verification.models import load_stored
from mupscale_cli.verification.transformers import import_transformers

_OWN_TRAINER = "`mupscale sweep --command`"  # also for `coordcheck`, which has no such option


def check_causal(config: Mapping[str, Any] | None, path: Path) -> None:
    """Check that a config is that of a causal language model, which the built-in trainer can train.

    Raises:
        SweepError: it is not, or transformers is not installed.
    """
    own = f"bring your own trainer: {_OWN_TRAINER}"
    if config is None:
        raise SweepError(f"`{path}` has no config.json", hint=own)
    if "model_type" not in config:
        raise SweepError(f"config.json of `{path}` has no `model_type`", hint=own)
    transformers = import_transformers(
        SweepError(
            "the built-in trainer needs transformers, which is not installed",
            hint=f"{install_extra('sweep')}, or bring your own trainer: {_OWN_TRAINER}",
        )
    )
    known = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    model_type, classes = config["model_type"], config.get("architectures") or ()
    if model_type not in known or (classes and known[model_type] not in classes):
        name = classes[0] if classes else model_type
        raise SweepError(f"the built-in trainer trains causal language models; `{name}` is not one", hint=own)


def vocab_size(config: Mapping[str, Any], path: Path) -> int:
    """Return the vocabulary size of a model.

    Raises:
        SweepError: its config has no `vocab_size`.
    """
    size = config.get("vocab_size")
    if not isinstance(size, int):
        raise SweepError(
            f"config.json of `{path}` has no `vocab_size`", hint=f"give token ids and your own trainer: {_OWN_TRAINER}"
        )
    return size


def load_model(checkpoint: Checkpoint, device: torch.device) -> nn.Module:
    """Load a checkpoint's model in float32, in training mode.

    Raises:
        SweepError: transformers cannot load it.
    """
    transformers = import_transformers()
    model_class = transformers.AutoModelForCausalLM
    try:
        model: nn.Module = load_stored(transformers, model_class, checkpoint, dtype=torch.float32)
    except Exception as error:
        raise SweepError(f"transformers cannot load `{checkpoint.path}`: {error}") from error
    return model.to(device).train()


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer in a model's folder.

    Raises:
        SweepError: transformers cannot load it.
    """
    try:
        return import_transformers().AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise SweepError(f"transformers cannot load the tokenizer of `{folder}`: {error}") from error

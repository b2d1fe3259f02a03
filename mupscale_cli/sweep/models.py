"""Causal language models of transformers, as the built-in trainer takes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mupscale_cli.checkpoints.reading import Checkpoint
from mupscale_cli.errors import SweepError
from mupscale_cli.verification.models import as_directory
from mupscale_cli.verification.transformers import import_transformers


def check_causal(config: Mapping[str, Any] | None, path: Path) -> None:
    """Refuse what is no causal language model.

    Raises:
        SweepError: the built-in trainer does not know how to train it, or transformers is not installed.
    """
    own = "bring your own trainer with `--command`"
    if config is None or "model_type" not in config:
        raise SweepError(f"`{path}` has no config.json that says what model it is", hint=own)
    transformers = import_transformers(
        SweepError(
            "the built-in trainer builds its models with transformers, which is not installed",
            hint="pip install 'mupscale[sweep]', or bring your own trainer with `--command`",
        )
    )
    known = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    model_type, classes = config["model_type"], config.get("architectures") or ()
    if model_type not in known or (classes and known[model_type] not in classes):
        name = classes[0] if classes else model_type
        raise SweepError(f"the built-in trainer trains causal language models, and `{name}` is none", hint=own)


def vocab_size(config: Mapping[str, Any], path: Path) -> int:
    """How many tokens a model knows.

    Raises:
        SweepError: its config does not say it.
    """
    size = config.get("vocab_size")
    if not isinstance(size, int):
        raise SweepError(f"config.json of `{path}` has no `vocab_size`", hint="give token ids and `--command`")
    return size


def load_model(checkpoint: Checkpoint, device: torch.device) -> nn.Module:
    """A checkpoint's model in float32, ready to be trained.

    Raises:
        SweepError: transformers cannot load it.
    """
    transformers = import_transformers()
    with as_directory(checkpoint) as directory:
        try:
            model: nn.Module = transformers.AutoModelForCausalLM.from_pretrained(
                directory, dtype=torch.float32, local_files_only=True
            )
        except Exception as error:
            raise SweepError(f"transformers cannot load `{checkpoint.path}`: {error}") from error
    return model.to(device).train()


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a model's folder.

    Raises:
        SweepError: transformers cannot load it.
    """
    try:
        return import_transformers().AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise SweepError(f"transformers cannot load the tokenizer of `{folder}`: {error}") from error

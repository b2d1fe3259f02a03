"""Small runs in the Trainer of transformers, in float64, that clip their gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from helpers import build

CLIP = 0.5
# Whatever the model's type, the reference computes norms, softmax and rotary tables in float32: some roundings of it.
REL = 16 * 2**-24


class RandomTokens(Dataset[dict[str, torch.Tensor]]):
    """The same sequences in every run."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = torch.randint(50, (9,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": tokens, "labels": tokens}


DEFAULTS: dict[str, Any] = {
    "max_steps": 8,
    "save_steps": 4,
    "learning_rate": 3e-3,
    "weight_decay": 0.1,
    "max_grad_norm": CLIP,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 2,
    "per_device_train_batch_size": 2,
    "logging_steps": 1,
    "use_cpu": True,
    "report_to": [],
    "disable_tqdm": True,
    "seed": 0,
}


def arguments(folder: Any, settings: dict[str, Any]) -> TrainingArguments:
    """Return the arguments of a run in a folder, with other settings than the defaults."""
    return TrainingArguments(folder, **{**DEFAULTS, **settings})


def losses(trainer: Trainer) -> dict[int, tuple[float, float]]:
    """Return the losses and norms by step."""
    return {
        entry["step"]: (entry["loss"], entry["grad_norm"]) for entry in trainer.state.log_history if "loss" in entry
    }


def trained(case: str, folder: Any, settings: dict[str, Any]) -> dict[int, tuple[float, float]]:
    """Train a model of `helpers`; return the losses and norms by step."""
    narrow = Trainer(
        build(case, dtype=torch.float64).train(), arguments(folder, settings), train_dataset=RandomTokens()
    )
    narrow.train()
    return losses(narrow)

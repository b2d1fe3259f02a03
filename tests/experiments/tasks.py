"""The three experiments: which model, on what, with which optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import paper_models
import torch
from torch import nn

from experiments.data import CONTEXT, VOCABULARY, Data, coloured_digits, documents, flat_digits

_HEAD_DIM = 8


@dataclass(frozen=True)
class Task:
    """A model, its data and how it is trained.

    Attributes:
        name: of the experiment.
        title: of its figures.
        build: from the width factor to an untrained model, in standard parametrisation.
        config: what `mupscale widen` needs to know of the narrow model beside its tensors, None for nothing.
        data: from nothing, since loading takes time.
        optimizer: `sgd` or `adamw`.
        settings: of the optimizer, without the learning rate.
        weight_decay: of the matrices.
        lr: around which the narrow model's learning rate is searched.
        batch_size: examples a step.
        narrow_steps: of the narrow model's training.
        steps: after widening, where optima at several widths are compared.
        long_steps: after widening, where the widened model is held against one from scratch.
        grown_by: how much wider the narrow model is where the widened one is held against one from scratch.
        growth: what else differs there, by attribute.
        factors: width over narrow width, 8 times from the first to the last.
        seeds: of noise and batches.
        reach: by how many grid steps a search goes past an optimum, so that it is known to be one.
        walk: how many grid steps a search goes from where it begins.
    """

    name: str
    title: str
    build: Callable[[int], nn.Module]
    config: Mapping[str, Any] | None
    data: Callable[[], Data]
    optimizer: str
    settings: Mapping[str, Any]
    weight_decay: float
    lr: float
    batch_size: int
    narrow_steps: int
    steps: int
    long_steps: int
    grown_by: int = 4
    growth: Mapping[str, Any] = field(default_factory=dict)
    factors: tuple[int, ...] = (4, 8, 16, 32)
    seeds: tuple[int, ...] = (0, 1, 2)
    reach: int = 2
    walk: int = 20

    def quick(self) -> Task:
        """So small that only the machinery is tried."""
        return replace(
            self,
            data=lambda: self.data().judged_on(32),
            batch_size=8,
            narrow_steps=4,
            steps=3,
            long_steps=3,
            grown_by=1,
            growth={},
            factors=(2, 4),
            seeds=(0,),
            reach=1,
            walk=0,
        )

    def grown(self) -> Task:
        """With a narrow model that can do its task, as one has that is worth widening; for `long_steps`."""
        by = self.grown_by
        config = self.config and {**self.config, **{key: self.config[key] * by for key in ("n_embd", "n_head")}}
        return replace(
            self,
            **{
                "build": lambda factor: self.build(by * factor),
                "config": config,
                "factors": (2, 4),
                "steps": self.long_steps,
                **self.growth,
            },
        )

    def briefly(self) -> Task:
        """With a seed less, for a question beside the main ones."""
        return replace(self, seeds=self.seeds[: max(len(self.seeds) - 1, 1)])


def _mlp(factor: int) -> nn.Module:
    width = 16 * factor
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


def _resnet(factor: int) -> nn.Module:
    """So small that it does not exhaust the digits, and that it is a small part of the widest one."""
    return paper_models.ResNet18([2 * factor, 4 * factor], 10, mup=False, blocks=1, stride=2)


_GPT = {
    "model_type": "nanogpt",
    "n_layer": 2,
    "n_head": 1,
    "n_embd": _HEAD_DIM,
    "block_size": CONTEXT,
    "vocab_size": VOCABULARY,
    "bias": False,
}


def _gpt(factor: int) -> nn.Module:
    """More heads of the same size, so that the function does not depend on head_dim."""
    return paper_models.build_gpt({**_GPT, "n_embd": _GPT["n_embd"] * factor, "n_head": _GPT["n_head"] * factor})


SGD = {"momentum": 0.9}
ADAMW = {"betas": (0.9, 0.95)}
_MLP = Task(
    "mlp-sgd",
    "MLP on digits, SGD",
    _mlp,
    None,
    flat_digits,
    "sgd",
    SGD,
    1e-4,
    2**-2.5,
    256,
    600,
    200,
    300,
    seeds=(0, 1, 2, 3),
)
TASKS = {
    task.name: task
    for task in (
        _MLP,
        replace(
            _MLP,
            name="mlp-adamw",
            title="MLP on digits, AdamW",
            optimizer="adamw",
            settings=ADAMW,
            weight_decay=0.1,
            lr=2**-5,
        ),
        Task(
            "resnet",
            "ResNet on digits, SGD",
            _resnet,
            None,
            coloured_digits,
            "sgd",
            SGD,
            1e-4,
            1.0,
            256,
            1000,
            200,
            200,
            factors=(8, 16, 32, 64),
            seeds=(0, 1, 2, 3),
        ),
        Task(
            "gpt",
            "GPT on documents, AdamW",
            _gpt,
            _GPT,
            documents,
            "adamw",
            ADAMW,
            0.1,
            2**-6,
            16,
            2000,
            300,
            120,
            grown_by=3,
            growth={"narrow_steps": 600, "seeds": (0, 1, 2)},
            factors=(6, 12, 24, 48),
            seeds=(0, 1),
        ),
    )
}


def initialise(model: nn.Module, seed: int) -> nn.Module:
    """Random weights in standard parametrisation: each sum starts at the size of its terms' root mean square."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.dim() > 1:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * initial_size(name, tensor.shape))
            elif name.endswith("bias"):
                tensor.zero_()
    return model


def initial_size(name: str, shape: torch.Size) -> float:
    """Standard deviation of a matrix before training."""
    if name.endswith(("wte.weight", "wpe.weight")):
        return 0.1  # small, since the embedding is the readout too
    return float(torch.Size(shape[1:]).numel() ** -0.5)

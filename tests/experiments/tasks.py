"""The tasks of the experiments: models, data and optimizers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import paper_models
import torch
from torch import nn

from experiments.data import CONTEXT, VOCABULARY, Data, color_digits, documents, flat_digits
from experiments.residual import Residual

_HEAD_DIM = 8
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Task:
    """A model, its data and its training.

    Attributes:
        name: the name of the experiment.
        title: the title of its figures.
        build: builds an untrained model in standard parametrization from a width factor.
        config: the config that `mupscale widen` needs for the narrow model, or None.
        data: loads the data, which takes time.
        optimizer: `sgd` or `adamw`.
        settings: the optimizer's settings except the learning rate.
        weight_decay: the weight decay of matrices.
        lr: the learning rate at which the search for the narrow model's best one starts.
        batch_size: examples per step.
        narrow_steps: training steps of the narrow model.
        steps: steps after widening, for comparing optima at several widths.
        long_steps: steps after widening, for comparing the widened model with one from scratch.
        grown_by: how much wider the narrow model is in the comparison with a model from scratch.
        growth: other attributes that differ in that comparison.
        base: width of the narrowest base over the narrow width, where the base's width varies.
        factors: widths over the narrow width; the last is 8 times the first.
        seeds: seeds for noise and batches.
        reach: grid steps that a search goes beyond an optimum, to confirm it.
        walk: grid steps that a search may go from its start.
        recipe: the recipe by which the model grows. Default: the one that its config names.
        widths: keys of its config that a wider model has larger.
        rebuild: builds an untrained model of any shape from its config or, without one, from the shapes of its tensors.
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
    base: int = 1
    factors: tuple[int, ...] = (4, 8, 16, 32)
    seeds: tuple[int, ...] = (0, 1, 2)
    reach: int = 2
    walk: int = 20
    recipe: str | Path | None = None
    widths: tuple[str, ...] = ("n_embd", "n_head")
    rebuild: Callable[[Mapping[str, Any]], nn.Module] | None = None

    def quick(self) -> Task:
        """Return a very small version, which only tests that the code runs."""
        return replace(
            self,
            data=lambda: self.data().with_evaluated(32),
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

    def from_width(self, by: int) -> Task:
        """Return a version whose narrow model is wider."""
        config = self.config and {**self.config, **{key: self.config[key] * by for key in self.widths}}
        return replace(self, build=lambda factor: self.build(by * factor), config=config)

    def enlarged(self) -> Task:
        """Return a version with a narrow model wide enough to learn its task, which trains for `long_steps`."""
        return replace(self.from_width(self.grown_by), **{"factors": (2, 4), "steps": self.long_steps, **self.growth})

    def with_fewer_seeds(self) -> Task:
        """Return a version with one seed fewer, for a minor question."""
        return replace(self, seeds=self.seeds[: max(len(self.seeds) - 1, 1)])


def _mlp(factor: int) -> nn.Module:
    width = 16 * factor
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


def _mlp_of(shapes: Mapping[str, Any]) -> nn.Module:
    layers = [nn.Linear(*reversed(shape)) for name, shape in sorted(shapes.items()) if name.endswith(".weight")]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


def _residual(factor: int) -> nn.Module:
    return Residual(16 * factor, 16 * factor)


def _residual_of(shapes: Mapping[str, Any]) -> nn.Module:
    inner, width = shapes["blocks.0.up.weight"]
    return Residual(width, inner)


def _resnet(factor: int) -> nn.Module:
    """Build a ResNet too small to learn the digits perfectly, and much narrower than the widest one."""
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
    """Build a GPT with `factor` times as many heads of the same size, because attention depends on head_dim."""
    return paper_models.build_gpt({**_GPT, "n_embd": _GPT["n_embd"] * factor, "n_head": _GPT["n_head"] * factor})


_LLAMA = {
    "model_type": "llama",
    "hidden_size": _HEAD_DIM,
    "intermediate_size": 2 * _HEAD_DIM,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "max_position_embeddings": CONTEXT,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": True,
}
_LLAMA_WIDTHS = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")


def _llama(factor: int) -> nn.Module:
    return _llama_of({**_LLAMA, **{key: _LLAMA[key] * factor for key in _LLAMA_WIDTHS}})


def _llama_of(config: Mapping[str, Any]) -> nn.Module:
    """Build a Llama that returns its logits."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**config))
    model.register_forward_hook(lambda _module, _inputs, output: output.logits)
    return model


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
    recipe=_HERE / "mlp.yaml",
    rebuild=_mlp_of,
)
_LLAMA_ADAMW = Task(
    "llama-adamw",
    "Llama on documents, AdamW",
    _llama,
    _LLAMA,
    documents,
    "adamw",
    ADAMW,
    0.1,
    2**-6,
    16,
    600,
    120,
    120,
    growth={"seeds": (0, 1, 2)},
    widths=_LLAMA_WIDTHS,
    rebuild=_llama_of,
)
TASKS = {
    task.name: task
    for task in (
        _MLP,
        replace(
            _MLP,
            name="residual",
            title="Residual network on digits, SGD",
            build=_residual,
            recipe=_HERE / "residual.yaml",
            rebuild=_residual_of,
        ),
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
            color_digits,
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
            base=2,
            recipe="resnet18",
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
            base=2,
            factors=(6, 12, 24, 48),
            seeds=(0, 1),
            rebuild=paper_models.build_gpt,
        ),
        _LLAMA_ADAMW,
        replace(
            _LLAMA_ADAMW, name="llama-muon", title="Llama on documents, Muon and AdamW", optimizer="muon", settings={}
        ),
    )
}


def initialize(model: nn.Module, seed: int) -> nn.Module:
    """Draw random weights in standard parametrization (see `initial_size`), and set biases to zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.dim() > 1:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * initial_size(name, tensor.shape))
            elif name.endswith("bias"):
                tensor.zero_()
    return model


def initial_size(name: str, shape: torch.Size) -> float:
    """Return the initial standard deviation of a matrix."""
    if name.endswith(("wte.weight", "wpe.weight", "embed_tokens.weight")):
        return 0.1  # small, because the embedding is also the readout
    return float(torch.Size(shape[1:]).numel() ** -0.5)

"""The models of the method's own experiments, in standard and in maximal update parametrization.

Each `build_*` function takes the argument of a `--model` function: a config, or the shapes of the tensors.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

BASE_WIDTH = 8  # both parametrizations are equal at this width


class MuReadout(nn.Linear):
    """A Linear layer that divides its input by the ratio of its width to the base width."""

    def __init__(self, width: int, outputs: int, base: int = BASE_WIDTH, *, bias: bool = True) -> None:
        super().__init__(width, outputs, bias=bias)
        self.multiplier = width / base

    def forward(self, values: Tensor) -> Tensor:
        return super().forward(values / self.multiplier)


def build_mlp_mup(config: dict[str, Any]) -> nn.Module:
    """Build Linear, ReLU, Linear, ReLU, MuReadout from shapes."""
    first, second, last = (config["shapes"][f"{i}.weight"] for i in (0, 2, 4))
    return nn.Sequential(
        nn.Linear(first[1], first[0]),
        nn.ReLU(),
        nn.Linear(second[1], second[0]),
        nn.ReLU(),
        MuReadout(last[1], last[0]),
    )


class Attention(nn.Module):
    """Causal attention with fused q/k/v."""

    def __init__(self, width: int, heads: int, *, bias: bool, mup: bool) -> None:
        super().__init__()
        self.heads, self.mup = heads, mup
        self.c_attn = nn.Linear(width, 3 * width, bias=bias)
        self.c_proj = nn.Linear(width, width, bias=bias)

    def forward(self, values: Tensor) -> Tensor:
        batch, length, width = values.shape
        d = width // self.heads
        q, k, v = (
            part.view(batch, length, self.heads, d).transpose(1, 2) for part in self.c_attn(values).split(width, -1)
        )
        scale = math.sqrt(8) / d if self.mup else 1 / math.sqrt(d)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        return self.c_proj(mixed.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    """Attention and a plain MLP, each behind a norm."""

    def __init__(self, width: int, heads: int, *, bias: bool, mup: bool) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, bias=bias)
        self.attn = Attention(width, heads, bias=bias, mup=mup)
        self.ln_2 = nn.LayerNorm(width, bias=bias)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(width, 4 * width, bias=bias), "c_proj": nn.Linear(4 * width, width, bias=bias)}
        )

    def forward(self, values: Tensor) -> Tensor:
        values = values + self.attn(self.ln_1(values))
        return values + self.mlp["c_proj"](functional.gelu(self.mlp["c_fc"](self.ln_2(values))))


class GPT(nn.Module):
    """A GPT with nanoGPT's names, its readout tied to the embedding."""

    def __init__(self, config: dict[str, Any], *, mup: bool) -> None:
        super().__init__()
        width, bias = config["n_embd"], config["bias"]
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config["vocab_size"], width),
                "wpe": nn.Embedding(config["block_size"], width),
                "h": nn.ModuleList(
                    Block(width, config["n_head"], bias=bias, mup=mup) for _ in range(config["n_layer"])
                ),
                "ln_f": nn.LayerNorm(width, bias=bias),
            }
        )
        readout = (
            MuReadout(width, config["vocab_size"], bias=False)
            if mup
            else nn.Linear(width, config["vocab_size"], bias=False)
        )
        self.lm_head = readout
        self.lm_head.weight = self.transformer["wte"].weight

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        values = self.transformer["wte"](tokens) + self.transformer["wpe"](positions)
        for block in self.transformer["h"]:
            values = block(values)
        return self.lm_head(self.transformer["ln_f"](values))


def build_gpt(config: dict[str, Any]) -> nn.Module:
    """Build nanoGPT's GPT in the parametrization named by the config's `model_type`."""
    return GPT(config, mup=config["model_type"] == "nanogpt-mup")


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, values: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(self.bn1(self.conv1(values)).relu()))
        return (inner + self.shortcut(values)).relu()


class ResNet18(nn.Module):
    """A ResNet of basic blocks with torchvision's names: `blocks` in each stage, the first convolution strided."""

    def __init__(self, widths: list[int], classes: int, *, mup: bool, blocks: int = 2, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.stages = len(widths)
        for i, (before, width) in enumerate(zip([widths[0], *widths], widths, strict=False), 1):
            first = BasicBlock(before, width, 1 if i == 1 else 2)
            others = (BasicBlock(width, width, 1) for _ in range(blocks - 1))
            setattr(self, f"layer{i}", nn.Sequential(first, *others))
        self.linear = MuReadout(widths[-1], classes) if mup else nn.Linear(widths[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        values = self.bn1(self.conv1(images)).relu()
        for i in range(1, self.stages + 1):
            values = getattr(self, f"layer{i}")(values)
        return self.linear(values.mean((2, 3)))


def _resnet(config: dict[str, Any], *, mup: bool) -> nn.Module:
    shapes = config["shapes"]
    stages = sum(f"layer{i}.0.conv1.weight" in shapes for i in range(1, 10))
    widths = [shapes[f"layer{i}.0.conv1.weight"][0] for i in range(1, stages + 1)]
    return ResNet18(widths, shapes["linear.weight"][0], mup=mup)


def build_resnet18(config: dict[str, Any]) -> nn.Module:
    """Build the ResNet in standard parametrization from shapes."""
    return _resnet(config, mup=False)


def build_resnet18_mup(config: dict[str, Any]) -> nn.Module:
    """Build the ResNet with a MuReadout from shapes."""
    return _resnet(config, mup=True)

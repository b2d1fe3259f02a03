"""Random inputs for a model, by what it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from mupscale_cli.plan import Plan
from mupscale_cli.verification.result import CannotVerify

BATCH = 2
LENGTH = 16
_IMAGE = 64


@dataclass(frozen=True)
class Inputs:
    """Arguments for a model's forward, and words for them."""

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    about: str

    def to(self, device: torch.device, dtype: torch.dtype) -> Inputs:
        """The same on a device; floating-point tensors in the models' type."""

        def moved(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(device, dtype) if value.is_floating_point() else value.to(device)
            return value

        return Inputs(
            tuple(map(moved, self.arguments)), {key: moved(v) for key, v in self.keywords.items()}, self.about
        )


def reference_inputs(model: nn.Module, generator: torch.Generator) -> Inputs:
    """Inputs for a transformers model: tokens or images, by its `main_input_name`.

    Raises:
        CannotVerify: it takes something else.
    """
    config: Any = model.config
    name = getattr(model, "main_input_name", "input_ids")
    if name == "pixel_values":
        size = getattr(config, "image_size", None) or _IMAGE
        height, width = (size, size) if isinstance(size, int) else tuple(size)
        pixels = torch.randn(BATCH, config.num_channels, height, width, generator=generator, dtype=torch.float64)
        return Inputs((), {name: pixels}, f"{BATCH} random images of {height}x{width}")
    if name != "input_ids":
        raise CannotVerify(
            f"it takes `{name}`, for which there are no random inputs yet; give your own model with `--model`"
        )
    text = config.get_text_config()
    tokens = random_tokens(text.vocab_size, LENGTH, generator)
    keywords = {name: tokens}
    if getattr(config, "is_encoder_decoder", False):
        keywords["decoder_input_ids"] = random_tokens(text.vocab_size, LENGTH, generator)
    return Inputs((), keywords, f"{BATCH} sequences of {LENGTH} random tokens")


def random_tokens(vocab_size: int, length: int, generator: torch.Generator) -> Tensor:
    """A batch of token ids."""
    return torch.randint(vocab_size, (BATCH, length), generator=generator)


def user_inputs(module: ModuleType, config: Mapping[str, Any], plan: Plan, generator: torch.Generator) -> Inputs:
    """Inputs for a user's model: from its module's `inputs(config, generator)`, else by its first weight.

    Raises:
        CannotVerify: the first weight does not tell.
    """
    make = getattr(module, "inputs", None)
    if callable(make):
        made = make(config, generator)
        if isinstance(made, Mapping):
            return Inputs((), dict(made), "inputs of the user's module")
        return Inputs(made if isinstance(made, tuple) else (made,), {}, "inputs of the user's module")
    if "vocab_size" in config:
        return Inputs(
            (random_tokens(config["vocab_size"], LENGTH, generator),),
            {},
            f"{BATCH} sequences of {LENGTH} random tokens",
        )
    first = next(
        (t for t in plan.tensors if len(t.source.shape) in (2, 4) and t.dims[1].size == t.dims[1].wide_size), None
    )
    if first is None:
        raise CannotVerify(
            "its first weight does not tell what it takes; define `inputs(config, generator)` beside the build function"
        )
    features = first.source.shape[1]
    size = (BATCH, features) if len(first.source.shape) == 2 else (BATCH, features, _IMAGE, _IMAGE)
    values = torch.randn(size, generator=generator, dtype=torch.float64)
    return Inputs((values,), {}, f"random numbers of shape {tuple(size)}")

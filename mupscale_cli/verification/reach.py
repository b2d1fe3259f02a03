"""Inputs that reach what a few random tokens do not: rare tokens, late positions, experts, padding, training."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mupscale_cli.plan import Plan
from mupscale_cli.verification.inputs.batch import BATCH, LENGTH, Inputs
from mupscale_cli.verification.inputs.texts import length_limits, only_length, vocabulary
from mupscale_cli.verification.inputs.tokens import varied_decoder_tokens, varied_tokens
from mupscale_cli.verification.outputs import output_tensor
from mupscale_cli.verification.precision import everything_in

_MAX_PRODUCTS = 4e9  # parameters times tokens of one further run: about a second on two cores
_MAX_LENGTH = 512  # attention takes memory in proportion to the square of the length
_MAX_LOGITS = 1 << 24
_MAX_BATCHES = 4  # to search for inputs that reach every expert
_PADDING = 5
# Keys of a config whose value is a length at which a model begins to compute something else.
_LENGTHS = re.compile(r"window|max_distance|position_buckets|max_position|n_positions|original_max|chunk_size")


@dataclass(frozen=True)
class Run:
    """A further run of both models.

    Attributes:
        what: what is compared, for reports.
        inputs: arguments of the forward pass.
        mask: positions to compare, shape (batch, length); None for all outputs.
        is_training: whether the model runs in training mode.
    """

    what: str
    inputs: Inputs
    mask: Tensor | None = None
    is_training: bool = False

    def output(self, model: nn.Module, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Tensor:
        """Run a model and return its main output, at the compared positions only.

        Random numbers begin with a seed: what drops whole layers of a sequence may do so too rarely to be noticed, and
        draws the same for both models.
        """
        inputs = self.inputs.to(device, dtype)
        saved = model.state_dict().keys()
        buffers = {name: buffer for name, buffer in model.named_buffers() if name in saved}
        before = {name: buffer.clone() for name, buffer in buffers.items()}  # training updates running means
        model.train(self.is_training)
        try:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                output = output_tensor(model(*inputs.arguments, **inputs.keywords))
        finally:
            model.eval()
            for name, buffer in buffers.items():
                buffer.copy_(before[name])
        is_by_token = self.mask is not None and output.shape[:2] == self.mask.shape
        return output[self.mask.bool().to(output.device)] if is_by_token and self.mask is not None else output


def is_affordable(plan: Plan, num_tokens: int) -> bool:
    """Tell whether a run of both models on some tokens costs little."""
    return plan.num_parameters[1] * num_tokens <= _MAX_PRODUCTS


def further_runs(model: nn.Module, inputs: Inputs, plan: Plan, dtype: torch.dtype, seed: int) -> tuple[Run, ...]:
    """Choose further runs by what the narrow model has and what is affordable.

    Args:
        model: the narrow model.
        inputs: the inputs that are compared anyway.
        plan: plan of the widening; the size of the wide model decides what is affordable.
        dtype: type that the models run in.
        seed: random seed.
    """
    generator = torch.Generator().manual_seed(seed + 2)
    device = next(model.parameters()).device
    runs: list[Run] = []
    if not is_affordable(plan, BATCH * LENGTH):
        return ()
    if set(inputs.keywords) <= {"input_ids", "decoder_input_ids"} and inputs.keywords:
        if only_length(model.config) is None:  # Nyströmformer's class fails on masks of padding
            runs.append(_right_padded(model, generator))
        runs += _long_runs(model, plan, generator, device, dtype)
    training = Run("in training mode", inputs, is_training=True)
    if _is_deterministic(model, training, device, dtype):
        runs.append(training)
    return tuple(runs)


def _right_padded(model: Any, generator: torch.Generator) -> Run:
    """Pad the second sequence of a batch on the right."""
    keywords = _text(model, generator, BATCH, LENGTH)
    mask = torch.ones(BATCH, LENGTH, dtype=torch.int64)
    mask[1, -_PADDING:] = 0
    return Run("of a right-padded batch", Inputs((), {**keywords, "attention_mask": mask}, ""), mask)


def _long_runs(
    model: Any, plan: Plan, generator: torch.Generator, device: torch.device, dtype: torch.dtype
) -> Iterator[Run]:
    """Yield batches that reach late positions, every token and every expert, as far as that is affordable."""
    vocab_size = vocabulary(model.config)
    tokens = int(_MAX_PRODUCTS / max(plan.num_parameters[1], 1))
    tokens = min(tokens, _MAX_LOGITS // vocab_size)
    length = _length(model, min(tokens // BATCH, _MAX_LENGTH))
    if length < LENGTH:
        return
    batch = max(BATCH, min(tokens // length, -(-vocab_size // length)))
    is_every = batch * length >= vocab_size
    reached: dict[str, Tensor] = {}
    for number in range(_MAX_BATCHES):
        keywords = _text(model, generator, batch, length)
        found = _reached_experts(model, keywords, device, dtype)
        is_new = any(bool((rows & ~reached.get(name, torch.zeros_like(rows))).any()) for name, rows in found.items())
        if number and not is_new:
            continue
        reached = {name: rows | reached.get(name, torch.zeros_like(rows)) for name, rows in found.items()}
        what = f"of {batch} sequences of {length} tokens{', every one of the vocabulary' if is_every else ''}"
        if number:
            what = f"of more tokens, which reach {_experts_text(reached)}"
        elif reached:
            what += f", {_experts_text(reached)}"
        yield Run(what, Inputs((), keywords, ""))
        if all(bool(rows.all()) for rows in reached.values()):
            return


def _experts_text(reached: Mapping[str, Tensor]) -> str:
    missing = sum(int((~rows).sum()) for rows in reached.values())
    return "every expert" if not missing else f"all but {missing} weights of experts"


def _text(model: Any, generator: torch.Generator, batch: int, length: int) -> dict[str, Tensor]:
    """Draw tokens, each of the vocabulary as often as any other, for the encoder and the decoder."""
    keywords = {"input_ids": varied_tokens(model.config, generator, batch, length)}
    if getattr(model.config, "is_encoder_decoder", False):
        keywords["decoder_input_ids"] = varied_decoder_tokens(model.config, generator, batch, length)
    return keywords


def _length(model: nn.Module, affordable: int) -> int:
    """Return the largest affordable length at which a model does something that it does not do before it."""
    config: Any = model.config
    limits = length_limits(model)
    longest: int = min((affordable, *limits))
    only = only_length(config)
    if only is not None:
        return only if only <= longest else 0
    beyond = (value + 2 for value in _integers({**config.to_dict(), **config.get_text_config().to_dict()}))
    lengths = (LENGTH, *beyond, *limits)
    return max(length for length in lengths if 0 < length <= longest) if longest >= LENGTH else longest


def _integers(config: Mapping[str, Any]) -> Iterator[int]:
    """Yield the lengths in a config, also those of nested objects."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _integers(value)
        elif type(value) is int and _LENGTHS.search(key):
            yield value


def _reached_experts(
    model: nn.Module, keywords: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Tell which experts some inputs reach: those whose weights have a gradient.

    Returns:
        By parameter of experts, a mask over the experts that it holds; empty if the model has none.
    """
    experts = {name: parameter for name, parameter in model.named_parameters() if ".experts." in f"{name}."}
    if not experts:
        return {}
    inputs = Inputs((), dict(keywords), "").to(device, dtype)
    with torch.enable_grad(), everything_in(dtype):
        output = output_tensor(model(**inputs.keywords))
        weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        loss = (output * weights.to(device, output.dtype)).sum()
        gradients = torch.autograd.grad(loss, tuple(experts.values()), allow_unused=True)
    return {
        name: _nonzero(parameter, gradient)
        for (name, parameter), gradient in zip(experts.items(), gradients, strict=True)
    }


def _nonzero(parameter: Tensor, gradient: Tensor | None) -> Tensor:
    """Return for each expert of a parameter whether its gradient is not zero; a matrix belongs to one expert."""
    count = len(parameter) if parameter.dim() == 3 else 1
    if gradient is None:
        return torch.zeros(count, dtype=torch.bool)
    return gradient.reshape(count, -1).ne(0).any(1).cpu()


def _is_deterministic(model: nn.Module, run: Run, device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether a model computes the same twice, that is, without dropout or other noise."""
    with everything_in(dtype):
        return torch.equal(*(run.output(model, device, dtype, seed) for seed in (0, 1)))

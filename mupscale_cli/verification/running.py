"""Running one model on all inputs that are compared: a forward pass, a padded batch, and generation with a cache."""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mupscale_cli.verification.activations import Trace, recording
from mupscale_cli.verification.failing import running_a_model
from mupscale_cli.verification.inputs.batch import BATCH, LENGTH, Inputs, random_tokens
from mupscale_cli.verification.inputs.placeholders import image_token
from mupscale_cli.verification.inputs.sounds import hears_while_it_writes
from mupscale_cli.verification.inputs.texts import vocabulary
from mupscale_cli.verification.models import Coverage, coverage
from mupscale_cli.verification.outputs import main_and_others, output_tensor
from mupscale_cli.verification.placement import Placement
from mupscale_cli.verification.precision import everything_in
from mupscale_cli.verification.reach import Run
from mupscale_cli.verification.transformers import import_transformers

_PADDING = 5


@dataclass(frozen=True)
class RunSettings:
    """Inputs and settings that both models run with.

    Attributes:
        inputs: inputs of a forward pass.
        names: modules whose outputs are compared.
        dtype: type of weights and activations.
        seed: random seed of the padded batch.
        num_tokens: number of tokens to generate.
        further: further runs, whose main output is compared.
    """

    inputs: Inputs
    names: frozenset[str]
    dtype: torch.dtype
    seed: int
    num_tokens: int
    further: tuple[Run, ...] = ()


@dataclass
class Outputs:
    """Outputs of one model.

    Attributes:
        logits: every compared output by its name, the main one first.
        modules: outputs of modules, or their comparisons with the narrow model's.
        tokens: prompt and generated tokens, shape (batch, length); None if the model does not generate.
    """

    logits: dict[str, Tensor]
    modules: Trace
    tokens: Tensor | None


def run(
    model: nn.Module,
    settings: RunSettings,
    placement: Placement,
    tokens: Tensor | None = None,
    watched: AbstractContextManager[Trace] | None = None,
) -> Outputs:
    """Run a model on all its inputs.

    A class that draws random numbers, such as the patches that it hides, draws the same in both models.

    Args:
        model: the model.
        settings: its inputs.
        placement: where it runs.
        tokens: tokens that generation follows. Default: the most likely ones.
        watched: watches the outputs of modules. Default: they are recorded.
    """
    inputs = settings.inputs.to(placement.device, settings.dtype)
    is_text = _is_text(model, inputs)
    logits: dict[str, Tensor] = {}
    with running_a_model(), torch.random.fork_rng(), everything_in(settings.dtype):
        torch.manual_seed(settings.seed)
        with watched or recording(model, settings.names) as trace:
            if not is_text:
                logits = _outputs(model(*inputs.arguments, **inputs.keywords), coverage(model))
            if _generates(model, inputs):
                prompt, mask = _left_padded(model, settings.seed, inputs)
                generated = _generate(model, prompt, mask, settings.num_tokens, tokens)
                tokens, padded = generated.tokens, output_tensor(generated.prefill)
                if padded.shape[:2] != mask.shape:  # a class that masks words puts one to predict behind the prompt
                    logits = logits or _outputs(model(*inputs.arguments, **inputs.keywords), coverage(model))
                else:
                    if is_text:  # the pass over the prompt serves for both: only its second sequence is padded
                        logits = _outputs(generated.prefill, coverage(model))
                        logits[next(iter(logits))] = padded[:1]
                    logits["logits of a left-padded batch"] = padded[mask.bool()]
                logits["logits of cached generation"] = generated.logits
        main = next(iter(logits))
        for each in settings.further:
            logits[f"{main} {each.what}"] = each.output(model, placement.device, settings.dtype)
    return Outputs({what: value.cpu() for what, value in logits.items()}, trace, tokens)


def _is_text(model: nn.Module, inputs: Inputs) -> bool:
    """Tell whether generation reads all the inputs, so that its first pass serves for the logits, too."""
    return _generates(model, inputs) and inputs.keywords.keys() == {"input_ids"}


def num_passes(model: nn.Module, settings: RunSettings) -> int:
    """Return how often `run` runs a model."""
    generated = settings.num_tokens if _generates(model, settings.inputs) else 0
    return generated + (not _is_text(model, settings.inputs)) + len(settings.further)


def _outputs(output: Any, covered: Coverage) -> dict[str, Tensor]:
    """Return a model's floating-point output tensors by their names, the main one first.

    Those that depend on missing weights are left out.
    """
    first, *others = main_and_others(output).items()
    seen = [(name, value) for name, value in others if not (covered.missing and bool(value.isnan().any()))]
    return dict([first, *seen])


def _generates(model: nn.Module, inputs: Inputs) -> bool:
    """Tell whether a model continues the text of its inputs token by token."""
    if "input_ids" not in inputs.keywords or getattr(model, "main_input_name", "input_ids") != "input_ids":
        return False  # BLIP continues an image, not a text
    if hears_while_it_writes(model.config) or inputs.keywords["input_ids"].dim() > 2:
        return False
    if "text" not in (getattr(model, "output_modalities", None) or ("text",)):
        return False
    can_generate = getattr(model, "can_generate", None)
    return bool(can_generate and can_generate() and not getattr(model.config, "is_encoder_decoder", False))


def _left_padded(model: nn.Module, seed: int, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Make a batch whose second sequence is padded on the left; return its tokens and mask, shape (BATCH, LENGTH).

    It has the tokens of the inputs, unless those are placeholders of images as well.
    """
    generator = torch.Generator().manual_seed(seed + 1)
    config: Any = model.config
    given = inputs.keywords["input_ids"]
    tokens = random_tokens(vocabulary(config), LENGTH, generator)
    if given.shape == tokens.shape:
        tokens = given.cpu().clone()
    mask = torch.ones(BATCH, LENGTH, dtype=torch.int64)
    tokens[tokens == image_token(config)] = 0
    tokens[1, :_PADDING] = 0
    mask[1, :_PADDING] = 0
    return tokens.to(given.device), mask.to(given.device)


@dataclass(frozen=True)
class _Generated:
    """What a model generated.

    Attributes:
        prefill: its output for the prompt, which fills the cache.
        logits: logits of the new tokens, shape (batch, new tokens, vocabulary).
        tokens: prompt and new tokens, shape (batch, length).
    """

    prefill: Any
    logits: Tensor
    tokens: Tensor


def _generate(model: Any, tokens: Tensor, mask: Tensor, num_tokens: int, forced: Tensor | None = None) -> _Generated:
    """Generate greedily with a KV cache.

    The wide model is forced to follow the narrow one's tokens, since a tie of two logits would lead to different texts.

    Args:
        model: a transformers model.
        tokens: the prompt, shape (batch, length).
        mask: its attention mask, same shape.
        num_tokens: number of tokens to generate.
        forced: tokens to follow, shape (batch, length + num_tokens).
    """
    passes: list[Any] = []

    def for_every_token(_module: nn.Module, arguments: Any, keywords: dict[str, Any]) -> Any:
        return arguments, {key: value for key, value in keywords.items() if key != "logits_to_keep"}

    def keep_first(_module: nn.Module, _arguments: Any, output: Any) -> None:
        if not passes:
            passes.append(output)

    class FollowForced:
        def __call__(self, so_far: Tensor, scores: Tensor) -> Tensor:
            assert forced is not None
            chosen = forced[:, so_far.shape[1]].unsqueeze(1)
            return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)

    settings = import_transformers().GenerationConfig(
        max_new_tokens=num_tokens,
        do_sample=False,
        use_cache=True,
        pad_token_id=0,
        eos_token_id=None,
        bos_token_id=None,
        return_dict_in_generate=True,
        output_logits=True,
    )
    hooks = (
        model.register_forward_pre_hook(for_every_token, with_kwargs=True),
        model.register_forward_hook(keep_first),
    )
    # A loss that balances experts is for training; its mask does not fit the single tokens of cached passes.
    wanted = inspect.signature(model.forward).parameters
    balancing = {key: False for key in ("output_router_logits",) if key in wanted}
    previous, model.generation_config = model.generation_config, settings
    try:
        result = model.generate(
            tokens,
            attention_mask=mask,
            generation_config=settings,
            logits_processor=[FollowForced()] if forced is not None else None,
            **balancing,
        )
    finally:
        model.generation_config = previous
        for hook in hooks:
            hook.remove()
    return _Generated(passes[0], torch.stack(result.logits, dim=1), result.sequences)

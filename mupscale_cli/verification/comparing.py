"""Running the narrow and the wide model on the same inputs, one after the other, and comparing their outputs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mupscale_cli.checkpoints.reading import Checkpoint
from mupscale_cli.errors import VerifyError
from mupscale_cli.plan import Plan
from mupscale_cli.plan.copies import CopyMap
from mupscale_cli.verification.activations import (
    compare_activations,
    planned_modules,
    recording,
    round_scaled_tensors,
)
from mupscale_cli.verification.inputs import (
    BATCH,
    LENGTH,
    Inputs,
    image_token,
    random_tokens,
    reference_inputs,
    user_inputs,
)
from mupscale_cli.verification.models import (
    build_reference_model,
    build_user_model,
    load_user_module,
    output_tensor,
    user_config,
)
from mupscale_cli.verification.options import VerifyOptions
from mupscale_cli.verification.placement import Placement, choose_placements, free_unused
from mupscale_cli.verification.precision import everything_in, stored_tolerance, tolerance
from mupscale_cli.verification.result import CannotVerify, Comparison, FunctionCheck, compare
from mupscale_cli.verification.transformers import import_transformers
from mupscale_cli.verification.weights import unperturbed_checkpoint

_log = logging.getLogger(__name__)  # shown by `-v`
_NEW_TOKENS = 8
_OFFLOADED_NEW_TOKENS = 2  # each token reads the whole model: the first fills the cache, the second uses it
_PADDING = 5


@dataclass(frozen=True)
class _RunSettings:
    """Inputs and settings that both models run with.

    Attributes:
        inputs: inputs of a forward pass.
        names: modules whose outputs are compared.
        dtype: type of weights and activations.
        seed: random seed of the padded batch.
        num_tokens: number of tokens to generate.
    """

    inputs: Inputs
    names: frozenset[str]
    dtype: torch.dtype
    seed: int
    num_tokens: int


@dataclass
class _Outputs:
    """Outputs of one model.

    Attributes:
        logits: every compared output by its name, the main one first.
        modules: outputs of modules by their names.
        tokens: prompt and generated tokens, shape (batch, length); None if the model does not generate.
    """

    logits: dict[str, Tensor]
    modules: dict[str, Tensor]
    tokens: Tensor | None


def verify_checkpoints(
    narrow: Checkpoint, wide: Checkpoint, plan: Plan, options: VerifyOptions, scratch_parent: Path | None = None
) -> FunctionCheck:
    """Run two checkpoints on the same random inputs and compare their outputs.

    This compares the models' outputs and the outputs of every module whose weight is in the plan, which must be
    copies of the narrow model's. For models that generate, it also compares a left-padded batch and the logits of
    generation with a KV cache. If the widening has noise, everything is compared a second time without it.

    Args:
        narrow: the source.
        wide: its widening.
        plan: plan of the widening.
        options: data type, device, user-defined model and seed.
        scratch_parent: folder for temporary files. Default: the folder that contains the wide checkpoint.

    Raises:
        CannotVerify: transformers, memory or disk space is lacking, or the model does not allow a comparison.
        VerifyError: a model cannot be built or run.
    """
    placements = choose_placements(plan, options.dtype, options.device, can_offload=options.model is None)
    dtype = placements.dtype
    _log.info(
        "comparing in %s: the narrow model on %s, then the wide model on %s",
        str(dtype).removeprefix("torch."),
        placements.narrow,
        placements.wide,
    )
    load_model, make_inputs = choose_builders(options, plan)
    with torch.no_grad():
        model = load_model(narrow, dtype, placements.narrow)
        modules = planned_modules(model, plan)
        inputs = make_inputs(model, narrow)
        num_tokens = _NEW_TOKENS if placements.wide.offload is None else _OFFLOADED_NEW_TOKENS
        settings = _RunSettings(inputs, frozenset(modules), dtype, options.seed, num_tokens)
        wide_settings = replace(settings, names=frozenset(module.wide_name for module in modules.values()))
        before = _run(model, settings, placements.narrow)
        _refuse_nonfinite(before)
        rounding = None
        if plan.rounded and plan.is_exact:
            if placements.narrow.offload is not None:
                raise CannotVerify(
                    f"scaling rounds `{plan.rounded[0].target.name}`, and separating that rounding from an error needs "
                    "the narrow model in memory; `mupscale verify --only weights` compares the weights alone"
                )
            exact = before
            round_scaled_tensors(model, plan)
            before = _run(model, settings, placements.narrow, exact.tokens)
            main = next(iter(exact.logits))
            rounding = compare(main, exact.logits[main], before.logits[main])
        del model
        free_unused(placements.narrow.device)

        def compare_with(checkpoint: Checkpoint, allowed: tuple[float, str]) -> FunctionCheck:
            model = load_model(checkpoint, dtype, placements.wide)
            after = _run(model, wide_settings, placements.wide, before.tokens)
            del model
            free_unused(placements.wide.device)
            compared = compare_activations(modules, before.modules, after.modules) if plan.is_exact else []
            return FunctionCheck(
                comparisons=(*_compare_outputs(before.logits, after.logits, plan), *_final_hidden(compared, before)),
                num_modules=len(compared),
                worst_module=max(compared, key=lambda comparison: comparison.max_rel, default=None),
                first_difference=next((c for c in compared if not c.max_rel <= allowed[0]), None),
                tolerance=allowed[0],
                tolerance_reason=allowed[1],
                dtype=str(dtype).removeprefix("torch."),
                device=str(placements.wide),
                inputs=inputs.description,
                rounding=rounding,
                rounded_tensors=len(plan.rounded),
                modules=tuple(compared),
            )

        verification = compare_with(wide, stored_tolerance(plan, dtype))
        if plan.perturbation is None or not plan.is_exact:
            return replace(verification, keeps_function=plan.keeps_function)
        with unperturbed_checkpoint(narrow, plan, scratch_parent or wide.path.parent) as checkpoint:
            unperturbed = compare_with(checkpoint, tolerance(plan, dtype))
        return replace(verification, keeps_function=plan.keeps_function, unperturbed=unperturbed)


def _compare_outputs(before: Mapping[str, Tensor], after: Mapping[str, Tensor], plan: Plan) -> Iterator[Comparison]:
    """Compare the outputs of both models: logits are equal, and hidden states of a headless model are copies.

    Other outputs are skipped if their shape depends on the width: hidden states are compared module by module, and
    a normalized vector has a different scale.
    """
    for position, (what, narrow) in enumerate(before.items()):
        wide = after[what]
        if narrow.shape == wide.shape:
            note = "" if bool(narrow.any()) else " (all zero, so nothing is compared)"
            yield compare(f"{what}{note}", narrow, wide)
        elif position == 0:
            copies = max(1, wide.shape[-1] // narrow.shape[-1])
            name = f"{what} (each unit {copies} times)"
            candidates = [compare(name, expected, wide) for expected in _possible_copies(narrow, wide, plan)]
            yield min(candidates, key=lambda comparison: comparison.max_rel)


def _possible_copies(narrow: Tensor, wide: Tensor, plan: Plan) -> Iterator[Tensor]:
    """Yield hidden states with copied units, once for each different copy map of an axis of their size."""
    size, wide_size = narrow.shape[-1], wide.shape[-1]
    maps = {axis.copy_map() for axis in plan.axes if (axis.size, axis.wide_size) == (size, wide_size)}
    for units in maps or {CopyMap(size, max(1, wide_size // size))}:
        sources = torch.tensor(units.all_sources, device=narrow.device)
        yield narrow.index_select(-1, sources.clamp_min(0))


def _final_hidden(modules: list[Comparison], outputs: _Outputs) -> tuple[Comparison, ...]:
    """Return the comparison of the last module before the readout, under a name of its own; empty if there is none."""
    logits = next(iter(outputs.logits.values()))
    inner = [c for c in modules if outputs.modules[c.what].shape != logits.shape]
    return (replace(inner[-1], what=f"final hidden states (`{inner[-1].what}`)"),) if inner else ()


def choose_builders(
    options: VerifyOptions, plan: Plan
) -> tuple[Callable[[Checkpoint, torch.dtype, Placement], nn.Module], Callable[[nn.Module, Checkpoint], Inputs]]:
    """Return a function that loads a model and one that makes its inputs, for transformers or a user-defined model."""
    generator = torch.Generator().manual_seed(options.seed)
    if options.model is None:
        return build_reference_model, lambda model, _: reference_inputs(model, generator)
    module, build = load_user_module(options.model)
    return (
        lambda checkpoint, dtype, placement: build_user_model(build, checkpoint, dtype).to(placement.device),
        lambda model, checkpoint: user_inputs(module, user_config(checkpoint), plan, generator, model),
    )


def _run(model: nn.Module, settings: _RunSettings, placement: Placement, tokens: Tensor | None = None) -> _Outputs:
    """Run a model on all its inputs. Generation follows `tokens` if they are given."""
    inputs = settings.inputs.to(placement.device, settings.dtype)
    try:
        with everything_in(settings.dtype):
            with recording(model, settings.names) as recorder:
                logits = _outputs(model(*inputs.arguments, **inputs.keywords))
            if _generates(model):
                padded, mask = _left_padded(model, settings.seed, inputs)
                output = output_tensor(model(input_ids=padded, attention_mask=mask))
                logits["logits of a left-padded batch"] = output[mask.bool()]
                generated, tokens = _generate(model, padded, mask, settings.num_tokens, tokens)
                logits["logits of cached generation"] = generated
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        if placement.offload is not None:  # some modules use the weights of others, which are not loaded then
            raise CannotVerify(f"the model cannot run unless all its weights are on one device: {error}") from error
        raise VerifyError(f"the model failed to run: {error}") from error
    return _Outputs({what: value.cpu() for what, value in logits.items()}, recorder.outputs, tokens)


def _refuse_nonfinite(outputs: _Outputs) -> None:
    """Refuse NaN, which cannot be compared, and infinity, which hides how large a difference is."""
    what, values = next(iter(outputs.logits.items()))
    if not bool(values.isfinite().all()):
        raise CannotVerify(
            f"the {what} of the narrow model are not finite; `mupscale verify --only weights` runs no model"
        )


def _outputs(output: Any) -> dict[str, Tensor]:
    """Return a model's floating-point output tensors by their names, the main one first."""
    main = output_tensor(output)
    named = output.items() if isinstance(output, Mapping) else ()
    tensors = {name: value for name, value in named if isinstance(value, Tensor) and value.is_floating_point()}
    first = next((name for name, value in tensors.items() if value is main), "logits")
    return {first: main, **tensors}


def _generates(model: nn.Module) -> bool:
    can_generate = getattr(model, "can_generate", None)
    return bool(can_generate and can_generate() and not getattr(model.config, "is_encoder_decoder", False))


def _left_padded(model: nn.Module, seed: int, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Make a batch whose second sequence is padded on the left; return its tokens and mask, shape (BATCH, LENGTH)."""
    generator = torch.Generator().manual_seed(seed + 1)
    config: Any = model.config
    tokens = random_tokens(config.get_text_config().vocab_size, LENGTH, generator)
    mask = torch.ones(BATCH, LENGTH, dtype=torch.int64)
    tokens[tokens == image_token(config)] = 0
    tokens[1, :_PADDING] = 0
    mask[1, :_PADDING] = 0
    device = inputs.keywords["input_ids"].device
    return tokens.to(device), mask.to(device)


def _generate(
    model: Any, tokens: Tensor, mask: Tensor, num_tokens: int, forced: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Generate greedily with a KV cache; return the logits of the new tokens, and all tokens.

    The wide model is forced to follow the narrow one's tokens, since a tie of two logits would lead to different texts.

    Args:
        model: a transformers model.
        tokens: the prompt, shape (batch, length).
        mask: its attention mask, same shape.
        num_tokens: number of tokens to generate.
        forced: tokens to follow, shape (batch, length + num_tokens).
    """

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
    previous, model.generation_config = model.generation_config, settings
    try:
        result = model.generate(
            tokens,
            attention_mask=mask,
            generation_config=settings,
            logits_processor=[FollowForced()] if forced is not None else None,
        )
    finally:
        model.generation_config = previous
    return torch.stack(result.logits, dim=1), result.sequences

"""Both models on the same inputs: the narrow one first, then the wide one in its place."""

from __future__ import annotations

import gc
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
from mupscale_cli.verification.activations import compare_activations, planned_modules, recording, store_scaled
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
from mupscale_cli.verification.placement import Placement, place
from mupscale_cli.verification.precision import everything_in, stored_tolerance, tolerance
from mupscale_cli.verification.result import CannotVerify, Comparison, Verification, compare
from mupscale_cli.verification.transformers import import_transformers
from mupscale_cli.verification.weights import unperturbed

_log = logging.getLogger(__name__)  # `-v` shows it
_NEW_TOKENS = 8
_FEW_TOKENS = 2  # where every token reads the whole model again: one that fills the cache, one that uses it
_PADDING = 5


@dataclass(frozen=True)
class _Trial:
    """What both models are run on.

    Attributes:
        inputs: of one forward pass.
        names: of the modules whose outputs are compared.
        dtype: in which they run.
        seed: of the padded batch.
        num_tokens: to generate.
    """

    inputs: Inputs
    names: frozenset[str]
    dtype: torch.dtype
    seed: int
    num_tokens: int


@dataclass
class _Outputs:
    """What one model computed."""

    logits: dict[str, Tensor]
    modules: dict[str, Tensor]
    tokens: Tensor | None


def verify_checkpoints(
    narrow: Checkpoint, wide: Checkpoint, plan: Plan, options: VerifyOptions, room: Path | None = None
) -> Verification:
    """Run two checkpoints on the same random inputs and compare what they compute.

    Compared are the outputs, the outputs of every module whose weight the plan knows (copies of
    the narrow model's), and, for models that generate, a left-padded batch and the logits of
    generation with a KV cache. Of a perturbed widening the same is compared again without its noise.

    Args:
        narrow: the source.
        wide: what it was widened to.
        plan: how.
        options: data type, device, own model, seed.
        room: a folder for what has to be written meanwhile; beside the wide model if not given.

    Raises:
        CannotVerify: it is not possible here.
        VerifyError: a model cannot be built or run.
    """
    placed = place(plan, options.dtype, options.device, can_offload=options.model is None)
    dtype = placed.dtype
    _log.info(
        "both run in %s, one after the other: the narrow one on %s, the wide one on %s",
        str(dtype).removeprefix("torch."),
        placed.narrow,
        placed.wide,
    )
    load, make_inputs = reference(options, plan)
    with torch.no_grad():
        model = load(narrow, dtype, placed.narrow)
        plans = planned_modules(model, plan)
        inputs = make_inputs(model, narrow)
        num_tokens = _NEW_TOKENS if placed.wide.over is None else _FEW_TOKENS
        trial = _Trial(inputs, frozenset(plans), dtype, options.seed, num_tokens)
        before = _run(model, trial, placed.narrow)
        _refuse_nonfinite(before)
        rounding = None
        if plan.rounded and plan.method.is_copying:
            if placed.narrow.over is not None:
                raise CannotVerify(
                    f"`{plan.rounded[0].target.name}` is rounded by its scale, which can only be told apart where the "
                    "narrow model fits into memory; `mupscale verify --weights` compares the weights alone"
                )
            exact = before
            store_scaled(model, plan)
            before = _run(model, trial, placed.narrow, exact.tokens)
            main = next(iter(exact.logits))
            rounding = compare(main, exact.logits[main], before.logits[main])
        del model
        _free(placed.narrow.device)

        def found(checkpoint: Checkpoint, allowed: tuple[float, str]) -> Verification:
            model = load(checkpoint, dtype, placed.wide)
            after = _run(model, trial, placed.wide, before.tokens)
            del model
            _free(placed.wide.device)
            modules = compare_activations(plans, before.modules, after.modules) if plan.method.is_copying else []
            return Verification(
                comparisons=(*_compare_outputs(before.logits, after.logits, plan), *_final_hidden(modules, before)),
                num_modules=len(modules),
                worst_module=max(modules, key=lambda comparison: comparison.max_rel, default=None),
                first_difference=next((c for c in modules if not c.max_rel <= allowed[0]), None),
                tolerance=allowed[0],
                tolerance_reason=allowed[1],
                dtype=str(dtype).removeprefix("torch."),
                device=str(placed.wide),
                inputs=inputs.about,
                rounding=rounding,
                rounded_tensors=len(plan.rounded),
                modules=tuple(modules),
            )

        result = found(wide, stored_tolerance(plan, dtype))
        if plan.perturbation is None or not plan.method.is_copying:
            return replace(result, keeps_function=plan.keeps_function)
        with unperturbed(narrow, plan, room or wide.path.parent) as plain:
            without = found(plain, tolerance(plan, dtype))
        return replace(result, keeps_function=plan.keeps_function, unperturbed=without)


def _compare_outputs(before: Mapping[str, Tensor], after: Mapping[str, Tensor], plan: Plan) -> Iterator[Comparison]:
    """What two models return. Logits are equal; hidden states, which a headless model returns, are copies.

    Of further outputs those that depend on the width are left out: hidden states are compared
    module by module, and what is normalised over its length has another scale.
    """
    for position, (what, narrow) in enumerate(before.items()):
        wide = after[what]
        if narrow.shape == wide.shape:
            empty = "" if bool(narrow.any()) else " (all zero, so nothing is compared)"
            yield compare(f"{what}{empty}", narrow, wide)
        elif position == 0:
            copies = max(1, wide.shape[-1] // narrow.shape[-1])
            found = [
                compare(f"{what} (each unit {copies} times)", copied, wide) for copied in _copied(narrow, wide, plan)
            ]
            yield min(found, key=lambda comparison: comparison.max_rel)


def _copied(narrow: Tensor, wide: Tensor, plan: Plan) -> Iterator[Tensor]:
    """Hidden states copied along an axis of their size, whichever it is."""
    size, wide_size = narrow.shape[-1], wide.shape[-1]
    maps = {axis.copy_map() for axis in plan.axes if (axis.size, axis.wide_size) == (size, wide_size)}
    for units in maps or {CopyMap(size, max(1, wide_size // size))}:
        sources = torch.tensor(units.all_sources, device=narrow.device)
        yield narrow.index_select(-1, sources.clamp_min(0))


def _final_hidden(modules: list[Comparison], outputs: _Outputs) -> tuple[Comparison, ...]:
    """What the last module before the readout computed."""
    logits = next(iter(outputs.logits.values()))
    inner = [c for c in modules if outputs.modules[c.what].shape != logits.shape]
    return (replace(inner[-1], what=f"final hidden states (`{inner[-1].what}`)"),) if inner else ()


def reference(
    options: VerifyOptions, plan: Plan
) -> tuple[Callable[[Checkpoint, torch.dtype, Placement], nn.Module], Callable[[nn.Module, Checkpoint], Inputs]]:
    """How to load a model, and how to make inputs for it."""
    generator = torch.Generator().manual_seed(options.seed)
    if options.model is None:
        return build_reference_model, lambda model, _: reference_inputs(model, generator)
    module, build = load_user_module(options.model)
    return (
        lambda checkpoint, dtype, where: build_user_model(build, checkpoint, dtype).to(where.device),
        lambda model, checkpoint: user_inputs(module, user_config(checkpoint), plan, generator, model),
    )


def _run(model: nn.Module, trial: _Trial, where: Placement, tokens: Tensor | None = None) -> _Outputs:
    inputs = trial.inputs.to(where.device, trial.dtype)
    try:
        with everything_in(trial.dtype):
            with recording(model, trial.names) as recorder:
                logits = _outputs(model(*inputs.arguments, **inputs.keywords))
            if _generates(model):
                padded, mask = _left_padded(model, trial.seed, inputs)
                output = output_tensor(model(input_ids=padded, attention_mask=mask))
                logits["logits of a left-padded batch"] = output[mask.bool()]
                found, tokens = _generate(model, padded, mask, trial.num_tokens, tokens)
                logits["logits of cached generation"] = found
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        if where.over is not None:  # some models use weights of other modules than the one that runs
            raise CannotVerify(f"the model cannot be run when its weights are not on one device: {error}") from error
        raise VerifyError(f"the model cannot be run: {error}") from error
    return _Outputs({what: value.cpu() for what, value in logits.items()}, recorder.outputs, tokens)


def _refuse_nonfinite(outputs: _Outputs) -> None:
    """Nothing can be compared with NaN, and an infinity says nothing of how large the difference is."""
    what, values = next(iter(outputs.logits.items()))
    if not bool(values.isfinite().all()):
        raise CannotVerify(
            f"the {what} of the narrow model are not finite; `mupscale verify --weights` compares the weights alone"
        )


def _outputs(output: Any) -> dict[str, Tensor]:
    """Every floating-point tensor that a model returns by name, the main one first."""
    main = output_tensor(output)
    named = output.items() if isinstance(output, Mapping) else ()
    tensors = {name: value for name, value in named if isinstance(value, Tensor) and value.is_floating_point()}
    first = next((name for name, value in tensors.items() if value is main), "logits")
    return {first: main, **tensors}


def _generates(model: nn.Module) -> bool:
    can_generate = getattr(model, "can_generate", None)
    return bool(can_generate and can_generate() and not getattr(model.config, "is_encoder_decoder", False))


def _left_padded(model: nn.Module, seed: int, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """A batch whose second sequence is shorter, padded on the left, and its mask."""
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
    """Logits of greedy generation with a KV cache, and the tokens; those given are forced.

    The wide model follows the narrow one's tokens: a tie of two logits must not end in two texts.
    """

    class Forced:
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
            logits_processor=[Forced()] if forced is not None else None,
        )
    finally:
        model.generation_config = previous
    return torch.stack(result.logits, dim=1), result.sequences


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()

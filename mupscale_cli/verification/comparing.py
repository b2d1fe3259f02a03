"""Running the narrow and the wide model on the same inputs, one after the other, and comparing their outputs."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mupscale_cli.checkpoints.reading import Checkpoint
from mupscale_cli.engine.events import SILENT, Events
from mupscale_cli.engine.threads import one_thread
from mupscale_cli.errors import VerifyError
from mupscale_cli.plan import Plan, TensorPlan
from mupscale_cli.plan.copies import FRESH, CopyMap
from mupscale_cli.text import listed, starred
from mupscale_cli.verification.activations import (
    PlannedModule,
    Trace,
    following,
    name_in,
    planned_modules,
    predictions,
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
    Coverage,
    build_reference_model,
    build_user_model,
    can_stream,
    coverage,
    load_user_module,
    output_tensor,
    user_config,
)
from mupscale_cli.verification.options import VerifyOptions
from mupscale_cli.verification.placement import Placement, choose_placement, free_unused
from mupscale_cli.verification.planned import narrow_tensors, restore_means
from mupscale_cli.verification.precision import (
    deciding_type,
    everything_in,
    module_tolerance,
    noise_tolerance,
    tolerance,
)
from mupscale_cli.verification.progress import count_weights
from mupscale_cli.verification.reach import Run, further_runs, is_affordable
from mupscale_cli.verification.result import CannotVerify, Comparison, FunctionCheck, compare
from mupscale_cli.verification.streamed import ChangesWeightError, doubled
from mupscale_cli.verification.transformers import import_transformers
from mupscale_cli.verification.weights import unperturbed_checkpoint, without_noise

_log = logging.getLogger(__name__)  # shown by `-v`
_NEW_TOKENS = 8
_FEW_NEW_TOKENS = 2  # each token reads the whole model: the first fills the cache, the second uses it
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
        further: further runs, whose main output is compared.
    """

    inputs: Inputs
    names: frozenset[str]
    dtype: torch.dtype
    seed: int
    num_tokens: int
    further: tuple[Run, ...] = ()


@dataclass
class _Outputs:
    """Outputs of one model.

    Attributes:
        logits: every compared output by its name, the main one first.
        modules: outputs of modules, or their comparisons with the narrow model's.
        tokens: prompt and generated tokens, shape (batch, length); None if the model does not generate.
    """

    logits: dict[str, Tensor]
    modules: Trace
    tokens: Tensor | None


def verify_checkpoints(
    narrow: Checkpoint,
    wide: Checkpoint,
    plan: Plan,
    options: VerifyOptions,
    scratch_parent: Path | None = None,
    *,
    is_thorough: bool = False,
    events: Events = SILENT,
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
        is_thorough: also run both models on inputs that reach more of them, as far as that is affordable; see `reach`.
        events: receive the progress.

    Raises:
        CannotVerify: transformers, memory or disk space is lacking, or the model does not allow a comparison.
        VerifyError: a model cannot be built or run.
    """
    compare = partial(_compare, narrow, wide, plan, options, scratch_parent, events, is_thorough=is_thorough)
    if options.model is None and can_stream(narrow):
        try:
            with one_thread():  # a product with a streamed weight has threads of its own; what remains is small
                return compare(is_streamed=True)
        except ChangesWeightError as change:
            _log.debug("weights are loaded whole: %s", change)
    return compare(is_streamed=False)


def _compare(
    narrow: Checkpoint,
    wide: Checkpoint,
    plan: Plan,
    options: VerifyOptions,
    scratch_parent: Path | None,
    events: Events,
    *,
    is_thorough: bool,
    is_streamed: bool,
) -> FunctionCheck:
    """Compare two checkpoints as `verify_checkpoints` does, with weights that stay in their file or whole ones."""
    placement = choose_placement(plan, options.dtype, options.device, is_streamed=is_streamed)
    dtype = placement.dtype
    _log.info("comparing in %s: the narrow model on %s, then the wide model", _name(dtype), placement)
    load_model, make_inputs = choose_builders(options, plan, is_streamed=is_streamed)
    with torch.no_grad():
        model = load_model(narrow, placement)
        inputs = make_inputs(model, narrow)
        observed = _observe_narrow(model, inputs, plan, placement, options.seed, events, is_thorough=is_thorough)
        del model
        free_unused(placement.device)

        def compare_with(checkpoint: Checkpoint, allowed: _Allowed, what: str = "wide model") -> FunctionCheck:
            model = load_model(checkpoint, placement)
            passes = _num_passes(model, observed.settings) + bool(observed.means)
            events.phase(f"running {what}", passes * count_weights(model, events.advance))
            rounding = None if allowed.is_of_noise else _restore_means(model, observed, plan, placement)
            compared = _compare_wide(model, observed, plan, placement, allowed)
            compared = replace(compared, rounding=rounding or observed.rounding)
            del model
            free_unused(placement.device)
            return compared

        verification = compare_with(wide, _allowed(plan, dtype, observed.response, has_noise=True))
        verification = replace(verification, keeps_function=plan.keeps_function)
        if plan.perturbation is not None and plan.is_exact:
            with unperturbed_checkpoint(narrow, plan, scratch_parent or wide.path.parent) as checkpoint:
                allowed = _allowed(plan, dtype, observed.response, has_noise=False)
                unperturbed = compare_with(checkpoint, allowed, "wide model without noise")
            verification = replace(verification, unperturbed=unperturbed)
    if verification.agrees:
        _refuse_large_tolerance(verification, plan, dtype, observed)
    return verification


@dataclass(frozen=True)
class _Allowed:
    """What rounding may change.

    Attributes:
        tolerance: largest relative difference.
        reason: derivation of the tolerance, in a line.
        module_by_module: whether it holds for each module by itself, and not for differences that have added up.
        is_of_noise: whether it allows for noise, or for none.
    """

    tolerance: float
    reason: str
    module_by_module: bool
    is_of_noise: bool


def _allowed(plan: Plan, dtype: torch.dtype, response: Comparison | None, *, has_noise: bool) -> _Allowed:
    """Return what rounding may change in the wide model, with its noise or without it.

    In float64, differences may add up: the sum of all that rounding explains is far below what a mistake makes. In a
    lower type it is not, so each module is compared by itself. So are weights whose noise was rounded to a lower type.
    """
    noise_cancels = has_noise and plan.perturbation is not None and plan.keeps_function
    changes_function = has_noise and not plan.keeps_function  # nothing is claimed; it is shown how much adds up
    if response is None or changes_function or (dtype == torch.float64 and not noise_cancels):
        return _Allowed(*tolerance(plan, dtype), module_by_module=False, is_of_noise=changes_function)
    allowed = noise_tolerance if noise_cancels else module_tolerance
    return _Allowed(*allowed(plan, dtype, response), module_by_module=True, is_of_noise=noise_cancels)


@dataclass(frozen=True)
class _Observed:
    """What the narrow model does.

    Attributes:
        settings: how it ran.
        modules: the compared modules, by name.
        outputs: its outputs, after its scaled tensors were rounded as stored ones are.
        exact: its outputs before that, by name.
        rounding: change of the main output by that; None if no scaled tensor is rounded.
        means: the tensors of the wide model that hold rounded means, by name, with their plans and sources.
        response: the largest change of an output if one rounding changes every output before it; None if not needed.
        mistake: the smallest change of an output by a forgotten factor of 2 in one of the weights.
    """

    settings: _RunSettings
    modules: Mapping[str, PlannedModule]
    outputs: _Outputs
    exact: Mapping[str, Tensor]
    rounding: Comparison | None
    means: Mapping[str, tuple[TensorPlan, Tensor]]
    response: Comparison | None
    mistake: Comparison


def _observe_narrow(
    model: nn.Module,
    inputs: Inputs,
    plan: Plan,
    placement: Placement,
    seed: int,
    events: Events,
    *,
    is_thorough: bool,
) -> _Observed:
    modules, dtype, is_exact = planned_modules(model, plan), placement.dtype, plan.is_exact
    module_by_module = is_exact and (dtype != torch.float64 or (plan.perturbation is not None and plan.keeps_function))
    num_tokens = _NEW_TOKENS if is_affordable(plan, BATCH * LENGTH) else _FEW_NEW_TOKENS
    settings = _RunSettings(inputs, frozenset(modules), dtype, seed, num_tokens)
    if is_thorough and not module_by_module:
        settings = replace(settings, further=_further_runs(model, inputs, plan, dtype, seed))
    pass_bytes = _num_passes(model, settings) * count_weights(model, events.advance)
    is_rounded = bool(plan.rounded) and is_exact
    events.phase("running narrow model", (1 + is_rounded) * pass_bytes)
    outputs = _run(model, settings, placement)
    _refuse_missing(coverage(model), outputs)
    _refuse_nonfinite(outputs)
    exact, rounding = outputs.logits, None
    means = dict(_sources_of_means(plan, model)) if is_exact else {}
    if is_rounded:
        round_scaled_tensors(model, plan)
        outputs = _run(model, settings, placement, outputs.tokens)
        main = next(iter(exact))
        rounding = compare(main, exact[main], outputs.logits[main])
    response, mistake = None, Comparison("every module", 0.5, 0.5)  # of a weight whose module is compared
    if module_by_module:
        hidden = _hidden_matrices(model, outputs)
        events.phase("measuring rounding", (1 + len(hidden)) * pass_bytes)
        response = max(_changes(model, settings, placement, outputs, _neighbors(seed)), key=_max_rel)
        mistake = min((mistake, *_hidden_mistakes(model, settings, placement, outputs, hidden)), key=_max_rel)
    return _Observed(settings, modules, outputs, exact, rounding, means, response, mistake)


def _sources_of_means(plan: Plan, narrow: nn.Module) -> Iterator[tuple[str, tuple[TensorPlan, Tensor]]]:
    """Yield each tensor of the wide model that holds rounded means: its name, its plan and a copy of its source."""
    parameters = dict(narrow.named_parameters(remove_duplicate=False))
    for name, (tensor, source) in narrow_tensors(without_noise(plan), narrow):
        if tensor.has_means:
            yield name, (tensor, parameters[source].detach().to("cpu", copy=True))


def _restore_means(model: nn.Module, narrow: _Observed, plan: Plan, placement: Placement) -> Comparison | None:
    """Replace the rounded means in a wide model by unrounded ones; return how far all rounding moves its output."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found = {name: name_in(model, name, parameters) for name in narrow.means}
    held = {name: parameters[own] for name, own in found.items() if own is not None}
    if not held:
        return None
    settings = replace(narrow.settings, names=frozenset(), further=(), num_tokens=1)
    stored = _run(model, settings, placement)
    for name, parameter in held.items():
        restore_means(*narrow.means[name], parameter)
    return next(_compare_outputs(narrow.exact, stored.logits, plan), None)


def _compare_wide(
    model: nn.Module, narrow: _Observed, plan: Plan, placement: Placement, allowed: _Allowed
) -> FunctionCheck:
    """Run a wide model on the narrow one's inputs, and compare all outputs."""
    before, planned = narrow.outputs, narrow.modules
    names = {module.wide_name: name for name, module in planned.items()}
    watched = following(
        model,
        before.modules,
        names if plan.is_exact else {},
        lambda name, *pair: predictions(planned[name].weight, *pair),
        is_steered=allowed.module_by_module,
    )
    after = _run(model, narrow.settings, placement, before.tokens, watched)
    modules = list(after.modules.comparisons.values())
    return FunctionCheck(
        comparisons=(*_compare_outputs(before.logits, after.logits, plan), *_final_hidden(modules, before)),
        num_modules=len(modules),
        worst_module=max(modules, key=lambda comparison: comparison.max_rel, default=None),
        first_difference=next((c for c in modules if not c.max_rel <= allowed.tolerance), None),
        tolerance=allowed.tolerance,
        tolerance_reason=allowed.reason,
        module_by_module=allowed.module_by_module,
        dtype=_name(narrow.settings.dtype),
        device=str(placement),
        inputs=narrow.settings.inputs.description,
        rounded_tensors=len({tensor.target.name for tensor in (*plan.rounded, *plan.with_means)}),
        modules=tuple(modules),
        missing=coverage(model).missing,
        unused=tuple(name for name in coverage(model).unused if name not in map(plan.wrapping.plain, plan.omitted)),
    )


def _changes(
    model: nn.Module,
    settings: _RunSettings,
    placement: Placement,
    before: _Outputs,
    disturb: Callable[[Tensor], Tensor] | None = None,
) -> list[Comparison]:
    """Run a changed narrow model again, every module from the values that it had before, and compare all outputs."""
    names = {name: name for name in before.modules.outputs}
    watched = following(model, before.modules, names, lambda _name, narrow, _output: iter((narrow,)), disturb)
    after = _run(model, settings, placement, before.tokens, watched)
    outputs = (compare(what, before.logits[what], value) for what, value in after.logits.items())
    return [*after.modules.comparisons.values(), *outputs]


def _neighbors(seed: int) -> Callable[[Tensor], Tensor]:
    """Return a function that moves every number to the next one above or below, at random."""
    generator = torch.Generator().manual_seed(seed)

    def move(values: Tensor) -> Tensor:
        up = torch.randint(0, 2, values.shape, generator=generator).bool()
        limit = torch.full_like(values, torch.inf)
        return torch.nextafter(values, torch.where(up, limit, -limit))

    return move


def _hidden_matrices(model: nn.Module, before: _Outputs) -> Mapping[str, Sequence[nn.Parameter]]:
    """Return the matrices whose own module's output is not compared, by kind; experts that share a tensor are such."""
    kinds: dict[str, list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and name.rpartition(".")[0] not in before.modules.outputs:
            kinds[starred(name)].append(parameter)
    return kinds


def _hidden_mistakes(
    model: nn.Module,
    settings: _RunSettings,
    placement: Placement,
    before: _Outputs,
    hidden: Mapping[str, Sequence[nn.Parameter]],
) -> Iterator[Comparison]:
    """Yield what a factor of 2 changes, for each kind of hidden matrix.

    All layers are changed at the same time, since no module sees what
    changed before the one in front of it; the change is that of the layer that shows it least. A matrix that changes
    nothing is not used.
    """
    for kind, parameters in hidden.items():
        with doubled(parameters):
            found = _changes(model, settings, placement, before)
        changes = sorted((comparison.max_rel for comparison in found if comparison.max_rel), reverse=True)
        if shown := changes[: len(parameters)]:
            yield Comparison(kind, shown[-1], shown[-1])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _max_rel(comparison: Comparison) -> float:
    return comparison.max_rel


def _refuse_large_tolerance(verification: FunctionCheck, plan: Plan, dtype: torch.dtype, narrow: _Observed) -> None:
    """Refuse to call models equal if a wrong one would pass as well."""
    parts = (verification, verification.unperturbed)
    largest = max((part.tolerance for part in parts if part is not None and part.keeps_function), default=0.0)
    limit = narrow.mistake.max_rel / 2
    if narrow.response is not None and not largest <= limit:
        raise CannotVerify(
            f"{verification.dtype} cannot tell this model from a wrong one: rounding explains a difference of "
            f"{largest:.1e}, and a forgotten factor of 2 in `{narrow.mistake.what}` makes one of "
            f"{narrow.mistake.max_rel:.1e}",
            hint=f"compare with more precision: `--dtype {deciding_type(plan, dtype, narrow.response, limit)}`",
        )


def _compare_outputs(before: Mapping[str, Tensor], after: Mapping[str, Tensor], plan: Plan) -> Iterator[Comparison]:
    """Compare the outputs of both models: logits are equal, and hidden states of a headless model are copies.

    Other outputs are skipped if their shape depends on the width: hidden states are compared module by module, and
    a normalized vector has a different scale.
    """
    main = next(iter(before))
    for position, (what, narrow) in enumerate(before.items()):
        wide = after[what]
        if narrow.shape == wide.shape:
            note = "" if bool(narrow.any()) else " (all zero, so nothing is compared)"
            yield compare(f"{what}{note}", narrow, wide)
        elif position == 0 or what.startswith(f"{main} "):
            copies = max(1, wide.shape[-1] // narrow.shape[-1])
            name = f"{what} (each unit {copies} times)"
            candidates = [compare(name, expected, wide) for expected in _possible_copies(narrow, wide, plan)]
            yield min(candidates, key=lambda comparison: comparison.max_rel)


def _possible_copies(narrow: Tensor, wide: Tensor, plan: Plan) -> Iterator[Tensor]:
    """Yield hidden states with copied units, once for each different growth of an axis of their size."""
    size, wide_size = narrow.shape[-1], wide.shape[-1]
    axes = (axis for axis in plan.axes if (axis.size, axis.wide_size) == (size, wide_size))
    maps = {(axis.copy_map(), axis.isometric) for axis in axes}
    for units, isometric in maps or {(CopyMap(size, max(1, wide_size // size)), False)}:
        sources = torch.tensor(units.all_sources, device=narrow.device)
        places = (sources != FRESH).nonzero().flatten()
        counts = torch.tensor([len(copies) for copies in units.positions], device=narrow.device)
        unit = narrow / counts.to(narrow.dtype).sqrt() if isometric else narrow
        yield wide.to(narrow.dtype).index_copy(-1, places, unit.index_select(-1, sources[places]))


def _final_hidden(modules: list[Comparison], outputs: _Outputs) -> tuple[Comparison, ...]:
    """Return the comparison of the last module before the readout, under a name of its own; empty if there is none."""
    logits = next(iter(outputs.logits.values()))
    inner = [c for c in modules if outputs.modules.outputs[c.what][0].shape != logits.shape]
    return (replace(inner[-1], what=f"final hidden states (`{inner[-1].what}`)"),) if inner else ()


def choose_builders(
    options: VerifyOptions, plan: Plan, *, is_streamed: bool = False
) -> tuple[Callable[[Checkpoint, Placement], nn.Module], Callable[[nn.Module, Checkpoint], Inputs]]:
    """Return a function that loads a model and one that makes its inputs, for a library's or a user-defined model.

    Args:
        options: the user-defined model, if any, and the seed of the inputs.
        plan: plan of the widening.
        is_streamed: whether weights may stay in their file; see `build_reference_model`.
    """
    generator = torch.Generator().manual_seed(options.seed)
    if options.model is None:

        def load(checkpoint: Checkpoint, placement: Placement) -> nn.Module:
            names = plan.recipe.is_optional, plan.wrapping.plain
            return build_reference_model(checkpoint, placement.dtype, placement.device, *names, is_streamed=is_streamed)

        return load, lambda model, checkpoint: reference_inputs(model, generator, checkpoint.library)
    module, build = load_user_module(options.model)
    return (
        lambda checkpoint, placement: build_user_model(build, checkpoint, placement.dtype, plan.wrapping.plain).to(
            placement.device
        ),
        lambda model, checkpoint: user_inputs(module, user_config(checkpoint), plan, generator, model),
    )


def _run(
    model: nn.Module,
    settings: _RunSettings,
    placement: Placement,
    tokens: Tensor | None = None,
    watched: AbstractContextManager[Trace] | None = None,
) -> _Outputs:
    """Run a model on all its inputs.

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
    try:
        with everything_in(settings.dtype):
            with watched or recording(model, settings.names) as trace:
                if not is_text:
                    logits = _outputs(model(*inputs.arguments, **inputs.keywords), coverage(model))
                if _generates(model):
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
            for run in settings.further:
                logits[f"{main} {run.what}"] = run.output(model, placement.device, settings.dtype)
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        raise VerifyError(f"the model failed to run: {error}") from error
    return _Outputs({what: value.cpu() for what, value in logits.items()}, trace, tokens)


def _is_text(model: nn.Module, inputs: Inputs) -> bool:
    """Tell whether generation reads all the inputs, so that its first pass serves for the logits, too."""
    return _generates(model) and inputs.keywords.keys() == {"input_ids"}


def _num_passes(model: nn.Module, settings: _RunSettings) -> int:
    """Return how often `_run` runs a model."""
    generated = settings.num_tokens if _generates(model) else 0
    return generated + (not _is_text(model, settings.inputs)) + len(settings.further)


def _further_runs(model: nn.Module, inputs: Inputs, plan: Plan, dtype: torch.dtype, seed: int) -> tuple[Run, ...]:
    try:
        return further_runs(model, inputs, plan, dtype, seed)
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        raise VerifyError(f"the model failed to run: {error}") from error


def _refuse_missing(covered: Coverage, outputs: _Outputs) -> None:
    """Refuse a checkpoint without weights that the main output or the output of a stored layer depends on.

    Weights that are missing are NaN, and so is what depends on them.
    """
    if not covered.missing:
        return
    main = next(iter(outputs.logits.items()))
    modules = ((f"output of `{name}`", value) for name, values in outputs.modules.outputs.items() for value in values)
    for what, value in (main, *modules):
        if bool(value.isnan().any()):
            raise VerifyError(
                f"the checkpoint lacks {listed(covered.missing, 3)}, which the {what} depends on",
                hint="check that config.json belongs to these weights, and that the checkpoint is complete",
            )


def _refuse_nonfinite(outputs: _Outputs) -> None:
    """Refuse NaN, which cannot be compared, and infinity, which hides how large a difference is."""
    what, values = next(iter(outputs.logits.items()))
    if not bool(values.isfinite().all()):
        raise CannotVerify(
            f"the {what} of the narrow model are not finite; `mupscale verify --only weights` runs no model"
        )


def _outputs(output: Any, covered: Coverage) -> dict[str, Tensor]:
    """Return a model's floating-point output tensors by their names, the main one first.

    Those that depend on missing weights are left out.
    """
    main = output_tensor(output)
    named = output.items() if isinstance(output, Mapping) else ()
    tensors = {name: value for name, value in named if isinstance(value, Tensor) and value.is_floating_point()}
    first = next((name for name, value in tensors.items() if value is main), "logits")
    if covered.missing:
        tensors = {name: value for name, value in tensors.items() if not bool(value.isnan().any())}
    return {first: main, **tensors}


def _generates(model: nn.Module) -> bool:
    can_generate = getattr(model, "can_generate", None)
    return bool(can_generate and can_generate() and not getattr(model.config, "is_encoder_decoder", False))


def _left_padded(model: nn.Module, seed: int, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Make a batch whose second sequence is padded on the left; return its tokens and mask, shape (BATCH, LENGTH).

    It has the tokens of the inputs, unless those are placeholders of images as well.
    """
    generator = torch.Generator().manual_seed(seed + 1)
    config: Any = model.config
    given = inputs.keywords["input_ids"]
    tokens = random_tokens(config.get_text_config().vocab_size, LENGTH, generator)
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
        for hook in hooks:
            hook.remove()
    return _Generated(passes[0], torch.stack(result.logits, dim=1), result.sequences)

"""Running the narrow and the wide model on the same inputs, one after the other, and comparing their outputs."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from mupscale_cli.checkpoints.reading import Checkpoint
from mupscale_cli.engine.events import SILENT, Events
from mupscale_cli.engine.threads import one_thread
from mupscale_cli.errors import VerifyError
from mupscale_cli.plan import Plan, TensorPlan
from mupscale_cli.plan.copies import FRESH, CopyMap
from mupscale_cli.text import listed
from mupscale_cli.verification.activations import (
    PlannedModule,
    following,
    name_in,
    planned_modules,
    predictions,
    round_scaled_tensors,
    written_scales,
)
from mupscale_cli.verification.builders import choose_builders
from mupscale_cli.verification.failing import running_a_model
from mupscale_cli.verification.inputs.batch import BATCH, LENGTH, Inputs
from mupscale_cli.verification.models import Coverage, can_stream, coverage
from mupscale_cli.verification.options import VerifyOptions
from mupscale_cli.verification.placement import Placement, choose_placement, free_unused
from mupscale_cli.verification.planned import narrow_tensors, restore_means
from mupscale_cli.verification.precision import (
    deciding_type,
    measured_tolerance,
    module_tolerance,
    noise_tolerance,
    tolerance,
)
from mupscale_cli.verification.progress import count_weights
from mupscale_cli.verification.reach import Run, further_runs, is_affordable
from mupscale_cli.verification.result import CannotVerify, Comparison, FunctionCheck, compare
from mupscale_cli.verification.running import Outputs, RunSettings, num_passes, run
from mupscale_cli.verification.sensitivity import (
    accumulated_response,
    changes,
    hidden_matrices,
    hidden_mistakes,
    neighbors,
)
from mupscale_cli.verification.streamed import ChangesWeightError
from mupscale_cli.verification.weights import unperturbed_checkpoint, without_noise

_log = logging.getLogger(__name__)  # shown by `-v`
# Each token reads the whole model: the first fills the cache, the second uses it, and the third what the second wrote;
# the fourth uses states that were written twice. More say the same again.
_NEW_TOKENS = 4
_FEW_NEW_TOKENS = 2


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
        if not is_streamed:  # a model whose weights stay in their file holds next to nothing
            free_unused(placement.device)

        def compare_with(checkpoint: Checkpoint, allowed: _Allowed, what: str = "wide model") -> FunctionCheck:
            model = load_model(checkpoint, placement)
            passes = num_passes(model, observed.settings) + bool(observed.means)
            events.phase(f"running {what}", passes * count_weights(model, events.advance))
            rounding = None if allowed.is_of_noise else _restore_means(model, observed, plan, placement)
            compared = _compare_wide(model, observed, plan, placement, allowed)
            compared = replace(compared, rounding=rounding or observed.rounding)
            del model
            if not is_streamed:
                free_unused(placement.device)
            return compared

        verification = compare_with(wide, _allowed(plan, dtype, observed, has_noise=True))
        verification = replace(verification, keeps_function=plan.keeps_function)
        if plan.perturbation is not None and plan.is_exact:
            with unperturbed_checkpoint(narrow, plan, scratch_parent or wide.path.parent) as checkpoint:
                allowed = _allowed(plan, dtype, observed, has_noise=False)
                unperturbed = compare_with(checkpoint, allowed, "wide model without noise")
            verification = replace(verification, unperturbed=unperturbed)
        if _may_be_sensitive(verification) or _may_be_sensitive(verification.unperturbed):
            sensitivity = _measure(load_model(narrow, placement), observed, plan, placement, options.seed, events)
            verification = _judge(verification, sensitivity, plan, dtype)
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


def _allowed(plan: Plan, dtype: torch.dtype, observed: _Observed, *, has_noise: bool) -> _Allowed:
    """Return what rounding may change in the wide model, with its noise or without it.

    In float64, differences may add up: the sum of all that rounding explains is far below what a mistake makes. In a
    lower type it is not, so each module is compared by itself. So are weights whose noise was rounded to a lower type.
    """
    response = observed.response
    noise_cancels = has_noise and plan.perturbation is not None and plan.keeps_function
    changes_function = has_noise and not plan.keeps_function  # nothing is claimed; it is shown how much adds up
    if response is None or changes_function or (dtype == torch.float64 and not noise_cancels):
        ran = observed.outputs.modules.executions
        executions = {module.weight.source.name: ran.get(name, 1) for name, module in observed.modules.items()}
        return _Allowed(*tolerance(plan, dtype, executions), module_by_module=False, is_of_noise=changes_function)
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

    settings: RunSettings
    modules: Mapping[str, PlannedModule]
    outputs: Outputs
    exact: Mapping[str, Tensor]
    rounding: Comparison | None
    means: Mapping[str, tuple[TensorPlan, Tensor]]
    response: Comparison | None
    mistake: Comparison


_ANY_MODULE = Comparison("every module", 0.5, 0.5)  # what a factor of 2 changes where the module's output is compared


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
    settings = RunSettings(inputs, frozenset(modules), dtype, seed, num_tokens)
    if is_thorough and not module_by_module:
        settings = replace(settings, further=_further_runs(model, inputs, plan, dtype, seed))
    pass_bytes = num_passes(model, settings) * count_weights(model, events.advance)
    is_rounded = bool(plan.rounded) and is_exact
    events.phase("running narrow model", (1 + is_rounded) * pass_bytes)
    outputs = run(model, settings, placement)
    _refuse_missing(coverage(model), outputs)
    _refuse_nonfinite(outputs)
    exact, rounding = outputs.logits, None
    means = dict(_sources_of_means(plan, model)) if is_exact else {}
    if is_rounded:
        round_scaled_tensors(model, plan)
        outputs = run(model, settings, placement, outputs.tokens)
        main = next(iter(exact))
        rounding = compare(main, exact[main], outputs.logits[main])
    response, mistake = None, _ANY_MODULE
    if module_by_module:
        hidden = hidden_matrices(model, outputs)
        events.phase("measuring rounding", (1 + len(hidden)) * pass_bytes)
        response = max(changes(model, settings, placement, outputs, neighbors(seed)), key=_max_rel)
        mistake = min((mistake, *hidden_mistakes(model, settings, placement, outputs, hidden)), key=_max_rel)
    return _Observed(settings, modules, outputs, exact, rounding, means, response, mistake)


def _may_be_sensitive(found: FunctionCheck | None) -> bool:
    """Tell whether models differ by more than rounding explains unless modules enlarge differences."""
    return found is not None and found.keeps_function and not found.module_by_module and not found.is_equal


@dataclass(frozen=True)
class _Sensitivity:
    """How differences of one rounding add up in the narrow model.

    Attributes:
        response: the largest change of an output if one rounding changes the output of every module.
        mistake: the smallest change of an output by a forgotten factor of 2 in one of the weights.
    """

    response: Comparison
    mistake: Comparison


def _measure(
    model: nn.Module, narrow: _Observed, plan: Plan, placement: Placement, seed: int, events: Events
) -> _Sensitivity:
    """Measure a narrow model that was loaded again, on all inputs that were compared."""
    settings, before = narrow.settings, narrow.outputs
    if plan.rounded and plan.is_exact:
        round_scaled_tensors(model, plan)
    hidden = hidden_matrices(model, before)
    passes = (1 + len(hidden)) * num_passes(model, settings)
    events.phase("measuring rounding", passes * count_weights(model, events.advance))
    found = accumulated_response(model, settings, placement, before, neighbors(seed))
    mistakes = hidden_mistakes(model, settings, placement, before, hidden)
    return _Sensitivity(found, min((_ANY_MODULE, *mistakes), key=_max_rel))


def _judge(found: FunctionCheck, sensitivity: _Sensitivity, plan: Plan, dtype: torch.dtype) -> FunctionCheck:
    """Compare again with what rounding may change as measured, if a mistake changes more than that."""
    allowed, reason = measured_tolerance(plan, dtype, sensitivity.response)
    unperturbed = found.unperturbed and _judge(found.unperturbed, sensitivity, plan, dtype)
    found = replace(found, unperturbed=unperturbed)
    if not _may_be_sensitive(found) or not allowed <= sensitivity.mistake.max_rel / 2:
        return found
    first = next((c for c in found.modules if not c.max_rel <= allowed), None)
    judged = replace(found, tolerance=allowed, tolerance_reason=reason, first_difference=first)
    return judged if judged.is_equal else found


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
    stored = run(model, settings, placement)
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
        lambda name, *pair: predictions(planned[name], *pair),
        is_steered=allowed.module_by_module,
    )
    after = run(model, narrow.settings, placement, before.tokens, watched)
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
            sizes = zip(narrow.shape, wide.shape, strict=True)
            # Units are the last dimension of sequences, and the second one of convolutions.
            grown = next(dim for dim, (size, wide_size) in enumerate(sizes) if size != wide_size)
            old, new = narrow.movedim(grown, -1), wide.movedim(grown, -1)
            copies = max(1, new.shape[-1] // old.shape[-1])
            name = f"{what} (each unit {copies} times)"
            candidates = [compare(name, expected, new) for expected in _possible_copies(old, new, plan)]
            yield min(candidates, key=lambda comparison: comparison.max_rel)


def _possible_copies(narrow: Tensor, wide: Tensor, plan: Plan) -> Iterator[Tensor]:
    """Yield hidden states with copied units, once for each different growth of an axis of their size.

    The states may have the scale that all layers give that axis which write to it.
    """
    size, wide_size = narrow.shape[-1], wide.shape[-1]
    axes = [axis for axis in plan.axes if (axis.size, axis.wide_size) == (size, wide_size)]
    written = written_scales(plan)
    maps = dict.fromkeys((a.copy_map(), a.isometric, scale) for a in axes for scale in (1.0, written.get(a.name, 1.0)))
    for units, isometric, scale in maps or {(CopyMap(size, max(1, wide_size // size)), False, 1.0): None}:
        sources = torch.tensor(units.all_sources, device=narrow.device)
        places = (sources != FRESH).nonzero().flatten()
        counts = torch.tensor([len(copies) for copies in units.positions], device=narrow.device)
        unit = narrow / counts.to(narrow.dtype).sqrt() if isometric else narrow
        yield wide.to(narrow.dtype).index_copy(-1, places, scale * unit.index_select(-1, sources[places]))


def _final_hidden(modules: list[Comparison], outputs: Outputs) -> tuple[Comparison, ...]:
    """Return the comparison of the last module before the readout, under a name of its own; empty if there is none."""
    logits = next(iter(outputs.logits.values()))
    inner = [c for c in modules if outputs.modules.outputs[c.what][0].shape != logits.shape]
    return (replace(inner[-1], what=f"final hidden states (`{inner[-1].what}`)"),) if inner else ()


def _further_runs(model: nn.Module, inputs: Inputs, plan: Plan, dtype: torch.dtype, seed: int) -> tuple[Run, ...]:
    with running_a_model():
        return further_runs(model, inputs, plan, dtype, seed)


def _refuse_missing(covered: Coverage, outputs: Outputs) -> None:
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


def _refuse_nonfinite(outputs: Outputs) -> None:
    """Refuse NaN, which cannot be compared, and infinity, which hides how large a difference is."""
    what, values = next(iter(outputs.logits.items()))
    if not bool(values.isfinite().all()):
        raise CannotVerify(
            f"the {what} of the narrow model are not finite; `mupscale verify --only weights` runs no model"
        )

"""Running the narrow and the wide model on the same inputs, one after the other, and comparing their outputs."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from mupscale_cli.checkpoints.reading import Checkpoint
from mupscale_cli.engine.events import SILENT, Events
from mupscale_cli.engine.threads import one_thread
from mupscale_cli.plan import Plan
from mupscale_cli.verification.activations import following, predictions
from mupscale_cli.verification.builders import choose_builders
from mupscale_cli.verification.compared_outputs import compare_outputs, final_hidden
from mupscale_cli.verification.models import can_stream, coverage
from mupscale_cli.verification.observing import Observed, observe_narrow, restore_held_means
from mupscale_cli.verification.options import VerifyOptions
from mupscale_cli.verification.placement import Placement, choose_placement, free_unused
from mupscale_cli.verification.precision import deciding_type, module_tolerance, noise_tolerance, tolerance
from mupscale_cli.verification.progress import count_weights
from mupscale_cli.verification.result import CannotVerify, FunctionCheck
from mupscale_cli.verification.running import num_passes, run
from mupscale_cli.verification.sensitivity import judge, may_be_sensitive, measure_sensitivity
from mupscale_cli.verification.streamed import ChangesWeightError
from mupscale_cli.verification.weights import unperturbed_checkpoint

_log = logging.getLogger(__name__)  # shown by `-v`


def verify_checkpoints(
    narrow: Checkpoint,
    wide: Checkpoint,
    plan: Plan,
    options: VerifyOptions,
    scratch_parent: Path | None = None,
    *,
    is_thorough: bool = False,
    fits: bool = False,
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
        fits: whether it is known that the class has the sizes of both; see `early.require_fitting`.
        events: receive the progress.

    Raises:
        CannotVerify: transformers, memory or disk space is lacking, or the model does not allow a comparison.
        VerifyError: a model cannot be built or run.
    """
    compare = partial(_compare, narrow, wide, plan, options, scratch_parent, events, is_thorough=is_thorough, fits=fits)
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
    fits: bool,
) -> FunctionCheck:
    """Compare two checkpoints as `verify_checkpoints` does, with weights that stay in their file or whole ones."""
    placement = choose_placement(plan, options.dtype, options.device, is_streamed=is_streamed)
    dtype = placement.dtype
    _log.info("comparing in %s: the narrow model on %s, then the wide model", _name(dtype), placement)
    load_model, make_inputs = choose_builders(options, plan, is_streamed=is_streamed, fits=fits)
    with torch.no_grad():
        model = load_model(narrow, placement)
        inputs = make_inputs(model, narrow)
        observed = observe_narrow(model, inputs, plan, placement, options.seed, events, is_thorough=is_thorough)
        del model
        if not is_streamed:  # a model whose weights stay in their file holds next to nothing
            free_unused(placement.device)

        def compare_with(checkpoint: Checkpoint, allowed: _Allowed, what: str = "wide model") -> FunctionCheck:
            model = load_model(checkpoint, placement)
            passes = num_passes(model, observed.settings) + bool(observed.means)
            events.phase(f"running {what}", passes * count_weights(model, events.advance))
            rounding = None if allowed.is_of_noise else restore_held_means(model, observed, plan, placement)
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
        if may_be_sensitive(verification) or may_be_sensitive(verification.unperturbed):
            model, settings, before = load_model(narrow, placement), observed.settings, observed.outputs
            sensitivity = measure_sensitivity(model, settings, before, plan, placement, options.seed, events)
            verification = judge(verification, sensitivity, plan, dtype)
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


def _allowed(plan: Plan, dtype: torch.dtype, observed: Observed, *, has_noise: bool) -> _Allowed:
    """Return what rounding may change in the wide model, with its noise or without it.

    In float64, differences may add up: the sum of all that rounding explains is far below what a mistake makes. In a
    lower type it is not, so each module is compared by itself. So are weights whose noise was rounded to a lower type.
    """
    response = None if observed.sensitivity is None else observed.sensitivity.response
    noise_cancels = has_noise and plan.perturbation is not None and plan.keeps_function
    changes_function = has_noise and not plan.keeps_function  # nothing is claimed; it is shown how much adds up
    if response is None or changes_function or (dtype == torch.float64 and not noise_cancels):
        ran = observed.outputs.modules.executions
        executions = {module.weight.source.name: ran.get(name, 1) for name, module in observed.modules.items()}
        return _Allowed(*tolerance(plan, dtype, executions), module_by_module=False, is_of_noise=changes_function)
    allowed = noise_tolerance if noise_cancels else module_tolerance
    return _Allowed(*allowed(plan, dtype, response), module_by_module=True, is_of_noise=noise_cancels)


def _compare_wide(
    model: nn.Module, narrow: Observed, plan: Plan, placement: Placement, allowed: _Allowed
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
        comparisons=(*compare_outputs(before.logits, after.logits, plan), *final_hidden(modules, before)),
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


def _refuse_large_tolerance(verification: FunctionCheck, plan: Plan, dtype: torch.dtype, narrow: Observed) -> None:
    """Refuse to call models equal if a wrong one would pass as well."""
    parts = (verification, verification.unperturbed)
    largest = max((part.tolerance for part in parts if part is not None and part.keeps_function), default=0.0)
    if narrow.sensitivity is None:
        return
    response, mistake = narrow.sensitivity.response, narrow.sensitivity.mistake
    limit = mistake.max_rel / 2
    if not largest <= limit:
        raise CannotVerify(
            f"{verification.dtype} cannot tell this model from a wrong one: rounding explains a difference of "
            f"{largest:.1e}, and a forgotten factor of 2 in `{mistake.what}` makes one of "
            f"{mistake.max_rel:.1e}",
            hint=f"compare with more precision: `--dtype {deciding_type(plan, dtype, response, limit)}`",
        )

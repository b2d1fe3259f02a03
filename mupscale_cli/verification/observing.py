"""Running the narrow model: what it computes, how it rounds, and what a comparison has to allow for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from operator import attrgetter

import torch
from torch import Tensor, nn

from mupscale_cli.engine.events import Events
from mupscale_cli.errors import VerifyError
from mupscale_cli.plan import Plan, TensorPlan
from mupscale_cli.text import listed
from mupscale_cli.verification.activations import PlannedModule, name_in, planned_modules, round_scaled_tensors
from mupscale_cli.verification.compared_outputs import compare_outputs
from mupscale_cli.verification.failing import running_a_model
from mupscale_cli.verification.inputs.batch import BATCH, LENGTH, Inputs
from mupscale_cli.verification.models import Coverage, coverage
from mupscale_cli.verification.placement import Placement
from mupscale_cli.verification.planned import narrow_tensors, restore_means
from mupscale_cli.verification.progress import count_weights
from mupscale_cli.verification.reach import Run, further_runs, is_affordable
from mupscale_cli.verification.result import CannotVerify, Comparison, compare
from mupscale_cli.verification.running import Outputs, RunSettings, num_passes, run
from mupscale_cli.verification.sensitivity import Sensitivity, changes, hidden_matrices, least_mistake, neighbors
from mupscale_cli.verification.weights import without_noise

# Each token reads the whole model: the first fills the cache, the second uses it, and the third what the second wrote;
# the fourth uses states that were written twice. More say the same again.
_NEW_TOKENS = 4
_FEW_NEW_TOKENS = 2


@dataclass(frozen=True)
class Observed:
    """What the narrow model does.

    Attributes:
        settings: how it ran.
        modules: the compared modules, by name.
        outputs: its outputs, after its scaled tensors were rounded as stored ones are.
        exact: its outputs before that, by name.
        rounding: change of the main output by that; None if no scaled tensor is rounded.
        means: the tensors of the wide model that hold rounded means, by name, with their plans and sources.
        sensitivity: what one rounding of every output before it changes in an output, and what a mistake; None if
            modules are not compared one by one.
    """

    settings: RunSettings
    modules: Mapping[str, PlannedModule]
    outputs: Outputs
    exact: Mapping[str, Tensor]
    rounding: Comparison | None
    means: Mapping[str, tuple[TensorPlan, Tensor]]
    sensitivity: Sensitivity | None = None


def observe_narrow(
    model: nn.Module,
    inputs: Inputs,
    plan: Plan,
    placement: Placement,
    seed: int,
    events: Events,
    *,
    is_thorough: bool,
) -> Observed:
    """Run the narrow model, before and after its scaled tensors are rounded, and measure what rounding changes.

    Args:
        model: the narrow model, whose weights this changes.
        inputs: its inputs.
        plan: plan of the widening.
        placement: where the model is.
        seed: random seed of the padded batch and of disturbances.
        events: receive the progress.
        is_thorough: also run it on inputs that reach more of it; see `reach`.

    Raises:
        CannotVerify: its outputs are not finite.
        VerifyError: it fails to run, or the checkpoint lacks weights that its outputs depend on.
    """
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
    observed = Observed(settings, modules, outputs, exact, rounding, means)
    if not module_by_module:
        return observed
    hidden = hidden_matrices(model, outputs)
    events.phase("measuring rounding", (1 + len(hidden)) * pass_bytes)
    response = max(changes(model, settings, placement, outputs, neighbors(seed)), key=attrgetter("max_rel"))
    mistake = least_mistake(model, settings, placement, outputs, hidden)
    return replace(observed, sensitivity=Sensitivity(response, mistake))


def _further_runs(model: nn.Module, inputs: Inputs, plan: Plan, dtype: torch.dtype, seed: int) -> tuple[Run, ...]:
    with running_a_model():
        return further_runs(model, inputs, plan, dtype, seed)


def _sources_of_means(plan: Plan, narrow: nn.Module) -> Iterator[tuple[str, tuple[TensorPlan, Tensor]]]:
    """Yield each tensor of the wide model that holds rounded means: its name, its plan and a copy of its source."""
    parameters = dict(narrow.named_parameters(remove_duplicate=False))
    for name, (tensor, source) in narrow_tensors(without_noise(plan), narrow):
        if tensor.has_means:
            yield name, (tensor, parameters[source].detach().to("cpu", copy=True))


def restore_held_means(model: nn.Module, narrow: Observed, plan: Plan, placement: Placement) -> Comparison | None:
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
    return next(compare_outputs(narrow.exact, stored.logits, plan), None)


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

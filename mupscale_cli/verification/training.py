"""Taking the same optimizer steps with the narrow and the wide model, and comparing losses and parameters.

What the wide model should do is in `expected_steps`. It trains afterwards, alone in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mupscale_cli.engine.events import SILENT, Events
from mupscale_cli.errors import VerifyError
from mupscale_cli.optimizers.caveats import inexact_parts
from mupscale_cli.optimizers.identity import Kind
from mupscale_cli.optimizers.multipliers import CLIP_WEIGHT, ScaledTensor, spreads
from mupscale_cli.optimizers.tree import OptimizerTree
from mupscale_cli.plan import Plan, TensorPlan
from mupscale_cli.verification.activations import name_in
from mupscale_cli.verification.expected_steps import compare_parameters, refuse_standstill, train_narrow
from mupscale_cli.verification.inputs.batch import Inputs
from mupscale_cli.verification.optimizers import decayed_parameters
from mupscale_cli.verification.placement import free_unused
from mupscale_cli.verification.planned import (
    States,
    is_finished,
    is_stored,
    narrow_groups,
    narrow_tensors,
    plan_start,
    planned_weight,
    restart,
)
from mupscale_cli.verification.precision import everything_in, rounding_factor
from mupscale_cli.verification.progress import count_weights
from mupscale_cli.verification.result import CannotVerify, TrainingVerification
from mupscale_cli.verification.trainees import Loss, Start, make_trainee, take_step
from mupscale_cli.verification.weights import without_noise


def verify_training(
    load_narrow: Callable[[], nn.Module],
    load_wide: Callable[[], nn.Module],
    plan: Plan,
    loss: Loss,
    steps: int,
    *,
    state: OptimizerTree | None = None,
    wide_state: OptimizerTree | None = None,
    events: Events = SILENT,
) -> TrainingVerification:
    """Train both models for some optimizer steps, and compare losses and parameters.

    New blocks of a deeper model are frozen, since they learn what the narrow model cannot.

    Args:
        load_narrow: returns a model in float64 with the weights of the source.
        load_wide: returns a model in float64 with the weights of the widened checkpoint, without noise. It trains from
            the planned weights, which are not rounded.
        plan: plan of the widening.
        loss: returns the loss of a model on the batch of a step, which is the same for all models.
        steps: number of steps. Only the first one is compared if some parameter has parts that no single value of a
            setting fits, and then only the other parameters.
        state: state of the narrow optimizer. Default: AdamW without a state.
        wide_state: the carried state, which must be what the plan makes of `state`.
        events: receive the progress.

    Raises:
        CannotVerify: the steps move some parameter no farther than rounding may, or no parameter has exact settings.
        VerifyError: a model cannot be trained, or the plan does not match the weights.
    """
    state, wide_state = (tree and tree.renamed(plan.wrapping.plain) for tree in (state, wide_state))
    narrow = load_narrow()
    tensors = dict(narrow_tensors(without_noise(plan), narrow))
    groups = narrow_groups(state, _decays(narrow, tensors.values()))
    states: States = state.states if state else {}
    named = state.kinds if state else ()
    start = plan_start(plan, groups, states, wide_state, named)
    wide_groups = start.groups
    if is_finished(groups):
        groups, wide_groups = restart(groups), restart(wide_groups)
    names = dict(narrow.named_parameters(remove_duplicate=False))
    initial = {name: names[name].detach().to("cpu", copy=True) for _, name in tensors.values()}
    factor, reason = rounding_factor(plan, torch.float64)
    trained = {name: found for name, found in tensors.items() if not found[0].is_new}
    start_narrow = Start(groups, states, named)
    inexact, caveats = _inexact(trained, start_narrow)
    if trained.keys() <= inexact:
        raise CannotVerify(f"no parameter has settings that fit all of its parts: {'; '.join(caveats)}")
    steps = 1 if inexact else steps  # the first gradients are the planned ones, and further steps follow inexact ones
    events.phase("training narrow model", 2 * steps * count_weights(narrow, events.advance))
    expected = train_narrow(narrow, start_narrow, trained, initial, loss, steps, factor)
    description = start_narrow.description
    device = next(narrow.parameters()).device
    del narrow, names
    free_unused(device)  # the wide model trains alone in memory

    wide = load_wide()
    events.phase("training wide model", steps * count_weights(wide, events.advance))
    parameters = _wide_parameters(wide, tensors)
    stored = (*start.differences, *_start_as_planned(parameters, tensors, initial))
    initial.clear()
    parameters = {name: parameter for name, parameter in parameters.items() if name in trained}
    compared = {name: parameter for name, parameter in parameters.items() if name not in inexact}
    trainee = make_trainee(wide, Start(wide_groups, start.states, named))
    losses, first = [], None
    gradients: dict[str, Tensor] = {}
    with everything_in(torch.float64):
        for step in range(steps):
            losses.append((expected.losses[step], take_step(trainee, loss, step)))
            _collect_gradients(expected.uncertain, compared, gradients)
            if step == 0:
                first = compare_parameters(expected.first, compared, gradients)
                expected.first.clear()  # it takes as much memory as the narrow model
    last = compare_parameters(expected.last, compared, gradients)
    result = TrainingVerification(
        steps=steps,
        optimizer=description,
        losses=tuple(losses),
        loss_response=expected.loss_response,
        factor=factor,
        factor_reason=reason,
        weights=last,
        first_difference=next((c for c in (first, last) if c is not None and not c.agrees), None),
        ignored=expected.ignored,
        stored_differences=stored,
        carried=wide_state is not None,
        start="carried state" if wide_state is not None else "a fresh start",
        frozen=tuple(plan.blocks),
        inexact=tuple(sorted(inexact)),
        caveats=caveats,
    )
    if result.agrees:
        refuse_standstill({name: expected.last[name] for name in compared}, steps)
    return result


def _decays(narrow: nn.Module, tensors: Iterable[tuple[TensorPlan, str]]) -> dict[str, bool]:
    """Tell for every trained parameter whether weight decay applies to it after a fresh start.

    It does not apply to scaled gains that are stored as their difference from 1: decay acts on that difference, and the
    wide model cannot take the same step (page `theory`).
    """
    scaled = {source for tensor, source in tensors if tensor.offset and any(c != 1 for c, _ in tensor.parts)}
    return {name: is_decayed and name not in scaled for name, is_decayed in decayed_parameters(narrow).items()}


def _inexact(tensors: Mapping[str, tuple[TensorPlan, str]], start: Start) -> tuple[set[str], tuple[str, ...]]:
    """Return the wide parameters whose parts no single value of a setting fits, and what there is to say about them."""
    by_rule: dict[str, tuple[Kind, Mapping[str, Any], list[ScaledTensor]]] = {}
    for (settings, names), kind in zip(start.groups, start.kinds.groups, strict=True):
        members = set(names)
        _, _, found = by_rule.setdefault(kind.rule.name, (kind, settings, []))
        scaled = [ScaledTensor.of(tensor, name) for name, (tensor, source) in tensors.items() if source in members]
        for tensor in scaled:
            if len(tensor.parts) > 1 and spreads(tensor, kind.rule, kind.decoupled, settings).keys() - {CLIP_WEIGHT}:
                found.append(tensor)
    texts = [
        text
        for kind, settings, found in by_rule.values()
        for text in inexact_parts(kind.rule, found, kind.decoupled, settings)
    ]
    return {tensor.name for _, _, found in by_rule.values() for tensor in found}, tuple(texts)


def _wide_parameters(wide: nn.Module, planned_names: Iterable[str]) -> dict[str, nn.Parameter]:
    """Return the wide parameter of each planned name."""
    names = dict(wide.named_parameters(remove_duplicate=False))
    targets = {name: name_in(wide, name, names) for name in planned_names}
    found = {name: names[target] for name, target in targets.items() if target is not None}
    planned = set(map(id, found.values()))
    trained = ((name, parameter) for name, parameter in wide.named_parameters() if parameter.requires_grad)
    unplanned = [name for name, parameter in trained if id(parameter) not in planned]
    if unplanned:
        raise VerifyError(f"the wide model has a parameter `{min(unplanned)}` that is not in the plan")
    return found


def _start_as_planned(
    parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, tuple[TensorPlan, str]], initial: Mapping[str, Tensor]
) -> list[str]:
    """Set the wide parameters to the planned weights and freeze new blocks; return the names of what differed."""
    different = []
    for name, parameter in parameters.items():
        tensor, source = tensors[name]
        if not is_stored(tensor, initial[source], parameter):
            different.append(name)
        parameter.data.copy_(planned_weight(tensor, initial[source]))
        parameter.requires_grad_(parameter.requires_grad and not tensor.is_new)
    return different


def _collect_gradients(
    names: Iterable[str], parameters: Mapping[str, nn.Parameter], gradients: dict[str, Tensor]
) -> None:
    """Keep the largest magnitudes of the gradients of some wide parameters, on the CPU, step by step."""
    for name in names:
        if name in parameters and (gradient := parameters[name].grad) is not None:
            now = gradient.detach().abs().cpu()
            gradients[name] = torch.maximum(gradients[name], now) if name in gradients else now


def batch_loss(inputs: Callable[[nn.Module, int], Inputs], output: Callable[[Any], Tensor], seed: int) -> Loss:
    """Make a loss for any model: next-token cross-entropy if it has logits for each token, else a distance.

    The tokens are those of the decoder, if there is one; the distance is that to random targets. A class that draws
    random numbers even without dropout, such as SpeechT5's decoder of sound, draws the same in all models.

    Args:
        inputs: returns the inputs of a step, given the model.
        output: returns the tensor to compute the loss from, given a model's output.
        seed: random seed of the targets and of what classes draw.
    """

    def loss(model: nn.Module, step: int) -> Tensor:
        batch = inputs(model, step)
        with torch.random.fork_rng():
            torch.manual_seed(seed + step)
            result = output(model(*batch.arguments, **batch.keywords))
        first = batch.arguments[0] if batch.arguments else None
        tokens: Any = next(
            (batch.keywords[key] for key in ("decoder_input_ids", "input_ids") if key in batch.keywords), first
        )
        is_text = isinstance(tokens, Tensor) and not tokens.is_floating_point() and result.dim() == 3
        if is_text and result.shape[:2] == tokens.shape and result.shape[-1] > int(tokens.max()):
            return nn.functional.cross_entropy(result[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        generator = torch.Generator().manual_seed(seed + step)
        target = torch.randn(result.shape, generator=generator, dtype=torch.float64).to(result.device)
        return (result - target).square().mean()

    return loss

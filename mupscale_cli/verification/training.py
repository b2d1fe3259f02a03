"""Whether the wide model trains as the narrow one does: both take the same steps, side by side.

What is stored is compared first: wide weights and state must be what the plan makes of the narrow
ones, up to one rounding in their type. Training then starts from the unrounded values, in float64,
so that rounding of storage can neither hide a wrong rule nor look like one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mupscale_cli.dtypes import DTYPES, DType, dtype_of
from mupscale_cli.engine.streaming import expand_whole
from mupscale_cli.errors import VerifyError
from mupscale_cli.optimizers.content import scaled_by
from mupscale_cli.optimizers.groups import WideGroup, widen_groups
from mupscale_cli.optimizers.multipliers import state_scale
from mupscale_cli.optimizers.rules import OptimizerRule, default_settings, infer_optimizer, state_kind
from mupscale_cli.optimizers.state_plan import ParameterNames, rescale
from mupscale_cli.optimizers.tree import OptimizerTree
from mupscale_cli.plan import Plan, TensorPlan
from mupscale_cli.verification.activations import name_in
from mupscale_cli.verification.inputs import Inputs
from mupscale_cli.verification.optimizers import make_optimizer
from mupscale_cli.verification.precision import everything_in, tolerance
from mupscale_cli.verification.result import Comparison, StoredCheck, TrainingVerification

_PASSES = 3  # forward, backward to activations, backward to weights: each as many products as the first
Loss = Callable[[nn.Module, int], Tensor]


@dataclass(frozen=True)
class Side:
    """One of the two models with its optimizer."""

    rule: OptimizerRule
    parameters: Mapping[str, nn.Parameter]
    model: nn.Module
    optimizer: torch.optim.Optimizer


def verify_training(
    narrow: nn.Module,
    wide: nn.Module,
    plan: Plan,
    loss: Loss,
    steps: int,
    *,
    state: OptimizerTree | None = None,
    wide_state: OptimizerTree | None = None,
) -> TrainingVerification:
    """Take optimizer steps on both models and compare losses and weights.

    Args:
        narrow: in float64, with the weights of the source.
        wide: in float64, with the weights of the widened checkpoint.
        plan: of the weights.
        loss: of a model on the batch of a step, the same for both.
        steps: how many to take.
        state: the narrow optimizer's; AdamW from a fresh start if None.
        wide_state: the carried one, which is compared with what the plan makes of `state`.

    Raises:
        VerifyError: the model cannot be trained, or weights and plan do not belong together.
    """
    for model in (narrow, wide):
        _normalise_by_batch(model)
    tensors = _by_parameter(plan, narrow, wide)
    stored = [_settle_weight(tensor, before, after) for tensor, before, after in tensors.values()]
    groups, wide_groups = _groups(plan, state, wide_state, narrow)
    before_state = dict(state.states) if state else {}
    states, checks = _wide_states(plan, before_state, wide_state)
    sides = (
        _side(narrow, groups, before_state, dict(narrow.named_parameters())),
        _side(wide, wide_groups, states, dict(wide.named_parameters())),
    )
    allowed, reason = _tolerance(plan, steps)
    felt = _Felt({name: before for name, (_, before, _) in tensors.items()}, allowed)
    losses: list[tuple[float, float]] = []
    first: Comparison | None = None
    with everything_in(torch.float64):
        for step in range(steps):
            losses.append(tuple(_step(side, loss, step) for side in sides))  # type: ignore[arg-type]
            felt.note()
            deviations = [
                _deviation(name, tensor, before, after, felt.only_rounding(name))
                for name, (tensor, before, after) in tensors.items()
            ]
            worst = max(deviations, key=lambda found: found.max_rel)
            first_loss = abs(losses[-1][0] - losses[-1][1]) / max(abs(losses[-1][0]), 1e-300)
            if first is None and not first_loss <= allowed:
                first = replace(worst, what=f"{worst.what} (step {step + 1})")
    return TrainingVerification(
        steps=steps,
        optimizer=_optimizer_text(sides[0].rule, groups[0][0]),
        losses=tuple(losses),
        weights=worst,
        stored=_worst_check([*stored, *checks]),
        carried=wide_state is not None,
        start="carried state" if wide_state is not None else "a fresh start",
        first_difference=first,
        tolerance=allowed,
        tolerance_reason=reason,
        weights_tolerance=allowed * getattr(sides[0].optimizer, "condition", 1.0),
    )


def _tolerance(plan: Plan, steps: int) -> tuple[float, str]:
    forward, reason = tolerance(plan, torch.float64)
    return forward * _PASSES * steps, f"{reason}; {_PASSES} passes x {steps} steps of them"


# What is stored ------------------------------------------------------------------------------------


def _by_parameter(
    plan: Plan, narrow: nn.Module, wide: nn.Module
) -> dict[str, tuple[TensorPlan, nn.Parameter, nn.Parameter]]:
    before, after = (dict(model.named_parameters(remove_duplicate=False)) for model in (narrow, wide))
    canonical = {id(parameter): name for name, parameter in wide.named_parameters()}
    found = {}
    for tensor in (*plan.tensors, *plan.parameters):
        source = name_in(narrow, plan.recipe.parameter_name(tensor.source.name), before)
        target = name_in(wide, plan.recipe.parameter_name(tensor.target.name), after)
        if source is not None and target is not None:
            found[canonical[id(after[target])]] = tensor, before[source], after[target]
    strangers = set(canonical.values()) - found.keys()
    if strangers:
        raise VerifyError(f"the plan does not know the wide model's parameter `{min(strangers)}`")
    return found


def planned_weight(tensor: TensorPlan, narrow: Tensor) -> Tensor:
    """C R(W) in float64, unrounded. Shapes as the plan has them."""
    exact = replace(rescale(tensor, lambda c, _: c), offset=tensor.offset)
    return _planned(exact, narrow)


def _planned(tensor: TensorPlan, narrow: Tensor) -> Tensor:
    source = narrow.detach().to("cpu", torch.float64).contiguous()
    spec = replace(tensor.source, dtype="F64")
    return expand_whole(replace(tensor, source=spec, target=replace(tensor.target, dtype="F64")), source)


def _settle_weight(tensor: TensorPlan, narrow: nn.Parameter, wide: nn.Parameter) -> StoredCheck:
    """Compare a stored weight with the planned one, and put the planned one in its place."""
    ideal = planned_weight(tensor, narrow)
    check = _check(tensor.target.name, DTYPES[tensor.target.dtype], ideal, wide)
    wide.data.copy_(ideal)
    return check


def _check(name: str, dtype: DType, ideal: Tensor, stored: Tensor) -> StoredCheck:
    """How far what is stored is from what was planned, in units of its type's rounding.

    A share of an exact split is within one unit in the last place, which is two roundings.
    """
    unit = 2 * dtype.unit_roundoff
    error = (stored.detach().cpu().double() - ideal).abs()
    smallest = torch.finfo(dtype.torch).tiny
    ratio = float((error / (ideal.abs() * unit).clamp_min(smallest * unit)).max()) if ideal.numel() else 0.0
    return StoredCheck(name, ratio if math.isfinite(ratio) else math.inf)


def _worst_check(checks: Sequence[StoredCheck]) -> StoredCheck:
    return max(checks, key=lambda check: check.units)


# State and groups ----------------------------------------------------------------------------------


def _groups(
    plan: Plan, state: OptimizerTree | None, wide_state: OptimizerTree | None, narrow: nn.Module
) -> tuple[list[tuple[Mapping[str, Any], Sequence[str]]], list[tuple[Mapping[str, Any], Sequence[str]]]]:
    """Settings and names of both optimizers: the files' own, or what the rules make of the narrow one's."""
    groups = list(state.groups) if state and state.groups else []
    if not groups:
        names = [name for name, _ in narrow.named_parameters()]
        keys = {key for entries in (state.states.values() if state else ()) for key in entries}
        groups = [(default_settings(keys), names)]
    if wide_state and wide_state.groups:
        return groups, list(wide_state.groups)
    keys_of = {name: entries.keys() for name, entries in (state.states if state else {}).items()}
    scaled = scaled_by(plan)
    made: list[WideGroup] = widen_groups(groups, keys_of, scaled)
    return groups, [(group.settings, group.names) for group in made]


def _wide_states(
    plan: Plan, states: Mapping[str, Mapping[str, Any]], carried: OptimizerTree | None
) -> tuple[dict[str, dict[str, Any]], list[StoredCheck]]:
    """The planned state of every wide parameter, and how far the carried one is from it."""
    names = ParameterNames(plan)
    result: dict[str, dict[str, Any]] = {}
    checks = []
    for parameter, entries in states.items():
        for tensor in names.find(parameter):
            wide = names.wide(parameter, tensor)
            for key, value in entries.items():
                planned = _planned_state(tensor, key, value, set(entries))
                result.setdefault(wide, {})[key] = planned
                if carried is None or not isinstance(value, Tensor):
                    continue
                found = carried.states.get(wide, {}).get(key)
                if not isinstance(found, Tensor) or found.shape != planned.shape:
                    raise VerifyError(f"the carried state of `{wide}` has no `{key}` of shape {tuple(planned.shape)}")
                if found.is_floating_point():
                    checks.append(_check(f"{key} of {wide}", dtype_of(found.dtype), planned.double(), found))
    return result, checks


def _planned_state(tensor: TensorPlan, key: str, value: Any, keys: set[str]) -> Any:
    if not isinstance(value, Tensor) or tuple(value.shape) != tensor.source.shape:
        return value.clone() if isinstance(value, Tensor) else value
    kind = state_kind(key, keys)
    if kind == "weight":
        return planned_weight(tensor, value)
    return _planned(rescale(tensor, lambda c, m: state_scale(kind, c, m)), value)  # type: ignore[arg-type]


def _side(
    model: nn.Module,
    groups: Sequence[tuple[Mapping[str, Any], Sequence[str]]],
    states: Mapping[str, Mapping[str, Any]],
    parameters: Mapping[str, nn.Parameter],
) -> Side:
    """A model with an optimizer that has the given groups and state."""
    known = {
        name: parameters[found]
        for name in (n for _, names in groups for n in names)
        if (found := name_in(model, name, parameters)) is not None
    }
    missing = next((name for _, names in groups for name in names if name not in known), None)
    if missing:
        raise VerifyError(f"the model has no parameter `{missing}`, which the optimizer has")
    settings, names = groups[0]
    inferred = infer_optimizer(settings, {key for name in names for key in states.get(name, ())})
    if inferred is None:
        raise VerifyError("it cannot be told which optimizer the state belongs to")
    made = [{**settings, "params": [known[name] for name in names]} for settings, names in groups]
    optimizer = make_optimizer(*inferred, made)
    for name, entries in states.items():
        if name in known:
            optimizer.state[known[name]] = {key: _as_float64(value) for key, value in entries.items()}
    return Side(inferred[0], parameters, model, optimizer)


def _as_float64(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone().double() if value.is_floating_point() else value.clone()
    return value


def _optimizer_text(rule: OptimizerRule, settings: Mapping[str, Any]) -> str:
    shown = ", ".join(f"{key} {settings[key]:g}" for key in ("lr", "weight_decay", "momentum") if settings.get(key))
    return f"{rule.name} ({shown})"


# Steps ---------------------------------------------------------------------------------------------


def _normalise_by_batch(model: nn.Module) -> None:
    """Have BatchNorm use the batch, as in training; dropout, which is random, stays off."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.train()


def _step(side: Side, loss: Loss, step: int) -> float:
    try:
        value = loss(side.model, step)
        side.optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        side.optimizer.step()
    except (RuntimeError, TypeError, ValueError) as error:
        raise VerifyError(f"the model cannot be trained: {error}") from error
    return float(value.detach())


class _Felt:
    """Which elements of the narrow parameters have felt more of a gradient than rounding error.

    Where the loss does not depend on an element at all (a bias of attention's keys, over which softmax
    divides out), its gradient is rounding error, and an optimizer that looks at signs moves it at random.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], allowed: float) -> None:
        self._parameters = parameters
        self._allowed = allowed
        self._real = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in parameters.items()}
        self._noise = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in parameters.items()}

    def note(self) -> None:
        """Look at the gradients of the step just taken."""
        sizes = {name: p.grad.abs() for name, p in self._parameters.items() if p.grad is not None}
        limit = self._allowed * max((float(size.max()) for size in sizes.values()), default=0.0)
        for name, size in sizes.items():
            self._real[name] |= size > limit
            self._noise[name] |= (size > 0) & (size <= limit)

    def only_rounding(self, name: str) -> Tensor:
        """The elements of a parameter that have felt nothing else so far."""
        return self._noise[name] & ~self._real[name]


def _deviation(name: str, tensor: TensorPlan, narrow: Tensor, wide: Tensor, ignored: Tensor) -> Comparison:
    """How far a wide parameter is from c R(narrow), without the elements to be ignored."""
    ideal = planned_weight(tensor, narrow)
    errors = (wide.detach().cpu() - ideal).abs()
    if bool(ignored.any()):
        errors[_planned(rescale(tensor, lambda _c, _m: 1.0), ignored) > 0] = 0
    error = float(errors.max())
    scale = float(ideal.abs().max())
    return Comparison(name, error, error / scale if scale else (0.0 if error == 0 else math.inf))


def batch_loss(inputs: Callable[[int], Inputs], output: Callable[[Any], Tensor], seed: int) -> Loss:
    """A loss for any model: next-token cross-entropy where it takes tokens, else distance to random targets.

    Args:
        inputs: of a step.
        output: the tensor of what a model returns.
        seed: of the targets.
    """

    def loss(model: nn.Module, step: int) -> Tensor:
        batch = inputs(step)
        result = output(model(*batch.arguments, **batch.keywords))
        tokens: Any = batch.keywords.get("input_ids", batch.arguments[0] if batch.arguments else None)
        is_text = isinstance(tokens, Tensor) and not tokens.is_floating_point() and result.dim() == 3
        if is_text and result.shape[-1] > int(tokens.max()):
            return nn.functional.cross_entropy(result[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        generator = torch.Generator().manual_seed(seed + step)
        target = torch.randn(result.shape, generator=generator, dtype=torch.float64).to(result.device)
        return (result - target).square().mean()

    return loss

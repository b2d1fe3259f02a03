"""What one rounding, and one forgotten factor, change in the outputs of a model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

import torch
from torch import Tensor, nn

from mupscale_cli.engine.events import Events
from mupscale_cli.plan import Plan
from mupscale_cli.text import starred
from mupscale_cli.verification.activations import disturbing, following, round_scaled_tensors
from mupscale_cli.verification.placement import Placement
from mupscale_cli.verification.precision import measured_tolerance
from mupscale_cli.verification.progress import count_weights
from mupscale_cli.verification.result import Comparison, FunctionCheck, compare
from mupscale_cli.verification.running import Outputs, RunSettings, num_passes, run
from mupscale_cli.verification.streamed import doubled

_ANY_MODULE = Comparison("every module", 0.5, 0.5)  # what a factor of 2 changes where the module's output is compared


def changes(
    model: nn.Module,
    settings: RunSettings,
    placement: Placement,
    before: Outputs,
    disturb: Callable[[Tensor], Tensor] | None = None,
) -> list[Comparison]:
    """Run a changed narrow model again, every module from the values that it had before, and compare all outputs."""
    names = {name: name for name in before.modules.outputs}
    watched = following(model, before.modules, names, lambda _name, narrow, _output: iter((narrow,)), disturb)
    after = run(model, settings, placement, before.tokens, watched)
    outputs = (compare(what, before.logits[what], value) for what, value in after.logits.items())
    return [*after.modules.comparisons.values(), *outputs]


def accumulated_response(
    model: nn.Module,
    settings: RunSettings,
    placement: Placement,
    before: Outputs,
    disturb: Callable[[Tensor], Tensor],
) -> Comparison:
    """Disturb every output of every module of a narrow model at the same time; return the largest change of an output.

    Changes add up from module to module, and modules may enlarge them.
    """
    watched = disturbing(model, before.modules.outputs, disturb)
    after = run(model, settings, placement, before.tokens, watched)
    outputs = [compare(what, before.logits[what], value) for what, value in after.logits.items()]
    outputs += (
        compare(name, value, changed)
        for name, values in before.modules.outputs.items()
        for value, changed in zip(values, after.modules.outputs[name], strict=True)
        if value.numel()
    )
    return max(outputs, key=lambda comparison: comparison.max_rel)


def neighbors(seed: int) -> Callable[[Tensor], Tensor]:
    """Return a function that moves every number to the next one above or below, at random."""
    generator = torch.Generator().manual_seed(seed)

    def move(values: Tensor) -> Tensor:
        up = torch.randint(0, 2, values.shape, generator=generator).bool()
        limit = torch.full_like(values, torch.inf)
        return torch.nextafter(values, torch.where(up, limit, -limit))

    return move


def hidden_matrices(model: nn.Module, before: Outputs) -> Mapping[str, Sequence[nn.Parameter]]:
    """Return the matrices whose own module's output is not compared, by kind; experts that share a tensor are such."""
    kinds: dict[str, list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and name.rpartition(".")[0] not in before.modules.outputs:
            kinds[starred(name)].append(parameter)
    return kinds


def least_mistake(
    model: nn.Module,
    settings: RunSettings,
    placement: Placement,
    before: Outputs,
    hidden: Mapping[str, Sequence[nn.Parameter]],
) -> Comparison:
    """Return what shows a forgotten factor of 2 in one of the weights least; see `_hidden_mistakes`."""
    mistakes = _hidden_mistakes(model, settings, placement, before, hidden)
    return min((_ANY_MODULE, *mistakes), key=attrgetter("max_rel"))


def _hidden_mistakes(
    model: nn.Module,
    settings: RunSettings,
    placement: Placement,
    before: Outputs,
    hidden: Mapping[str, Sequence[nn.Parameter]],
) -> Iterator[Comparison]:
    """Yield what a factor of 2 changes, for each kind of hidden matrix.

    All layers are changed at the same time, since no module sees what changed before the one in front of it; the change
    is that of the layer that shows it least. A matrix that changes nothing is not used.
    """
    for kind, parameters in hidden.items():
        with doubled(parameters):
            found = changes(model, settings, placement, before)
        sizes = sorted((comparison.max_rel for comparison in found if comparison.max_rel), reverse=True)
        if shown := sizes[: len(parameters)]:
            yield Comparison(kind, shown[-1], shown[-1])


@dataclass(frozen=True)
class Sensitivity:
    """What rounding and mistakes change in the narrow model.

    Attributes:
        response: the largest change of an output if one rounding changes the outputs of the modules before it.
        mistake: the smallest change of an output by a forgotten factor of 2 in one of the weights.
    """

    response: Comparison
    mistake: Comparison


def may_be_sensitive(found: FunctionCheck | None) -> bool:
    """Tell whether models differ by more than rounding explains unless modules enlarge differences."""
    return found is not None and found.keeps_function and not found.module_by_module and not found.is_equal


def measure_sensitivity(
    model: nn.Module,
    settings: RunSettings,
    before: Outputs,
    plan: Plan,
    placement: Placement,
    seed: int,
    events: Events,
) -> Sensitivity:
    """Measure a narrow model that was loaded again, on all inputs that were compared.

    Args:
        model: the model.
        settings: how it ran.
        before: its outputs then.
        plan: plan of the widening.
        placement: where it is.
        seed: random seed of the disturbances.
        events: receive the progress.
    """
    if plan.rounded and plan.is_exact:
        round_scaled_tensors(model, plan)
    hidden = hidden_matrices(model, before)
    passes = (1 + len(hidden)) * num_passes(model, settings)
    events.phase("measuring rounding", passes * count_weights(model, events.advance))
    response = accumulated_response(model, settings, placement, before, neighbors(seed))
    return Sensitivity(response, least_mistake(model, settings, placement, before, hidden))


def judge(found: FunctionCheck, sensitivity: Sensitivity, plan: Plan, dtype: torch.dtype) -> FunctionCheck:
    """Compare again with what rounding may change as measured, if a mistake changes more than that."""
    allowed, reason = measured_tolerance(plan, dtype, sensitivity.response)
    unperturbed = found.unperturbed and judge(found.unperturbed, sensitivity, plan, dtype)
    found = replace(found, unperturbed=unperturbed)
    if not may_be_sensitive(found) or not allowed <= sensitivity.mistake.max_rel / 2:
        return found
    first = next((c for c in found.modules if not c.max_rel <= allowed), None)
    judged = replace(found, tolerance=allowed, tolerance_reason=reason, first_difference=first)
    return judged if judged.is_equal else found

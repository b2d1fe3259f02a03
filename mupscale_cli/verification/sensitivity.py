"""What one rounding, and one forgotten factor, change in the outputs of a model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from mupscale_cli.text import starred
from mupscale_cli.verification.activations import disturbing, following
from mupscale_cli.verification.placement import Placement
from mupscale_cli.verification.result import Comparison, compare
from mupscale_cli.verification.running import Outputs, RunSettings, run
from mupscale_cli.verification.streamed import doubled


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


def hidden_mistakes(
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

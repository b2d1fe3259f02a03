"""Activations of the wide model as the plan predicts them from the narrow model's."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mupscale_cli.dtypes import DTYPES
from mupscale_cli.engine.expand import effective_source, expand
from mupscale_cli.plan import Plan, TensorPlan
from mupscale_cli.plan.dims import DimMap, Strip
from mupscale_cli.verification.result import Comparison, compare

_CHANNELS = (-1, 1)  # features come last, or second in convolutions


@dataclass
class Recorder:
    """Outputs of the modules that own planned tensors, in the order in which they first ran."""

    outputs: dict[str, Tensor]
    enabled: bool = True


@contextmanager
def recording(model: nn.Module, names: Collection[str]) -> Iterator[Recorder]:
    """Record the first output of every named module while the model runs."""
    recorder = Recorder({})
    handles = []

    def hook(name: str) -> Callable[[nn.Module, object, object], None]:
        def record(_module: nn.Module, _inputs: object, output: object) -> None:
            if recorder.enabled and isinstance(output, Tensor) and name not in recorder.outputs:
                recorder.outputs[name] = output.detach().to("cpu", copy=True)

        return record

    for name, module in model.named_modules():
        if name in names:
            handles.append(module.register_forward_hook(hook(name)))
    try:
        yield recorder
    finally:
        for handle in handles:
            handle.remove()


def name_in(model: nn.Module, name: str, known: Mapping[str, object]) -> str | None:
    """What a parameter or module is called in a model.

    Checkpoints may leave away the prefix that the model with a head gives its base.

    Args:
        model: the model.
        name: as the recipe has it.
        known: the model's names.
    """
    prefix = getattr(model, "base_model_prefix", "")
    return next((found for found in (name, f"{prefix}.{name}") if found in known), None)


def planned_modules(model: nn.Module, plan: Plan) -> dict[str, TensorPlan]:
    """The modules of a model whose weight the plan knows."""
    modules = dict(model.named_modules())
    found = {}
    for tensor in plan.tensors:
        target = plan.recipe.parameter_name(tensor.target.name)
        owner, _, kind = target.rpartition(".")
        name = name_in(model, owner, modules) if kind == "weight" and tensor.name_copies == 1 else None
        if name is not None:
            found[name] = tensor
    return found


def store_scaled(model: nn.Module, plan: Plan) -> None:
    """Give a narrow model the rounding that its scaled tensors get when they are stored, in place.

    Tensors that the wide model does not share any more are rounded each by itself.
    """
    for untied in plan.untied:
        owner, _, kind = plan.recipe.parameter_name(untied).rpartition(".")
        found = name_in(model, owner, dict(model.named_modules()))
        if found is not None:
            module = model.get_submodule(found)
            setattr(module, kind, nn.Parameter(getattr(module, kind).detach().clone()))
    parameters = dict(model.named_parameters())
    for tensor in plan.rounded:
        stored_as = tensor.target.name if tensor.target.name in plan.untied else tensor.source.name
        name = name_in(model, plan.recipe.parameter_name(stored_as), parameters)
        if name is None:
            continue
        parameter = parameters[name]
        stored = parameter.detach().to("cpu", DTYPES[tensor.source.dtype].torch).contiguous()
        strips = tuple(dim.strips for dim in tensor.dims)
        parameter.data.copy_(effective_source(stored, strips, scale=tensor.scale, offset=tensor.offset))


def compare_activations(
    plans: dict[str, TensorPlan], narrow: dict[str, Tensor], wide: dict[str, Tensor]
) -> list[Comparison]:
    """Compare every recorded module whose output the plan predicts, in the order of execution."""
    comparisons = []
    for name, output in narrow.items():
        if name in wide:
            expected = list(_predictions(plans[name], output, wide[name]))
            found = [compare(name, prediction, wide[name].to(prediction.dtype)) for prediction in expected]
            if found:
                comparisons.append(min(found, key=lambda comparison: comparison.max_rel))
    return comparisons


def _predictions(tensor: TensorPlan, narrow: Tensor, wide: Tensor) -> Iterator[Tensor]:
    """The wide output as copies of the narrow one, with the tensor's scale and without it.

    Without it where the module itself undoes the scale, as an embedding times sqrt(hidden_size).
    """
    for dim in tensor.dims:
        if any(digit.contracted and digit.units.copies > 1 for strip in dim.strips for digit in strip.digits):
            continue
        for position in _CHANNELS:
            if not _fits(dim, narrow, wide, position):
                continue
            copies, scale = _copies(dim), _scales(dim).to(narrow.dtype) * tensor.scale
            copied = narrow.index_select(position, copies)
            if tensor.is_scaled and not bool((scale == 1).all()):
                yield copied.movedim(position, -1).mul(scale).movedim(-1, position)
            yield copied
            return


def _fits(dim: DimMap, narrow: Tensor, wide: Tensor, position: int) -> bool:
    if narrow.dim() != wide.dim() or narrow.dim() < 2:
        return False
    expected = list(narrow.shape)
    expected[position] = dim.wide_size
    return narrow.shape[position] == dim.size and list(wide.shape) == expected


def _copies(dim: DimMap) -> Tensor:
    """For each new element of a dimension, the old one that it copies."""
    indices = torch.empty(dim.wide_size, dtype=torch.int64)
    strips = [Strip(strip.offset, strip.wide_offset, strip.digits) for strip in dim.strips]
    expand(torch.arange(dim.size), indices, (strips,))
    return indices


def _scales(dim: DimMap) -> Tensor:
    """For each new element of a dimension, the scale of its segment."""
    scales = torch.empty(dim.wide_size, dtype=torch.float64)
    expand(torch.ones(dim.size, dtype=torch.float64), scales, (dim.strips,))
    return scales

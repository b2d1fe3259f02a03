"""Predicting the activations of the wide model from those of the narrow one, and comparing them."""

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

_CHANNELS = (-1, 1)  # features are the last dimension, or the second one in convolutions


@dataclass
class Recorder:
    """Recorded outputs of modules, in the order in which the modules first ran."""

    outputs: dict[str, Tensor]


@contextmanager
def recording(model: nn.Module, names: Collection[str]) -> Iterator[Recorder]:
    """Record the first output of every named module while the model runs."""
    recorder = Recorder({})
    handles = []

    def hook(name: str) -> Callable[[nn.Module, object, object], None]:
        def record(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and name not in recorder.outputs:
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
    """Return the name of a parameter or module in a model, or None.

    A checkpoint may omit the prefix that a model with a head gives to the names of its base model.

    Args:
        model: the model.
        name: name in the recipe.
        known: names in the model.
    """
    prefix = getattr(model, "base_model_prefix", "")
    return next((candidate for candidate in (name, f"{prefix}.{name}") if candidate in known), None)


@dataclass(frozen=True, slots=True)
class PlannedModule:
    """A module whose weight is in the plan.

    Attributes:
        wide_name: its name in the wide model, where its block may have another number.
        weight: the plan of its weight.
    """

    wide_name: str
    weight: TensorPlan


def planned_modules(model: nn.Module, plan: Plan) -> dict[str, PlannedModule]:
    """Return the modules whose weight is in the plan, except those of new blocks, by name in the narrow model."""
    modules = dict(model.named_modules())
    planned = {}
    for tensor in plan.tensors:
        narrow, wide = (
            plan.recipe.parameter_name(name).rpartition(".")
            for name in (tensor.target.name if tensor.block is None else tensor.source.name, tensor.target.name)
        )
        is_single = narrow[2] == "weight" and tensor.name_copies == 1 and not tensor.is_new
        name = name_in(model, narrow[0], modules) if is_single else None
        if name is not None:
            planned[name] = PlannedModule(name.removesuffix(narrow[0]) + wide[0], tensor)
    return planned


def round_scaled_tensors(model: nn.Module, plan: Plan) -> None:
    """Round the scaled tensors of a narrow model, in place, as storing the wide ones does.

    Tensors that the wide model no longer shares are rounded separately.
    """
    for untied in plan.untied:
        owner, _, kind = plan.recipe.parameter_name(untied).rpartition(".")
        name = name_in(model, owner, dict(model.named_modules()))
        if name is not None:
            module = model.get_submodule(name)
            setattr(module, kind, nn.Parameter(getattr(module, kind).detach().clone()))
    parameters = dict(model.named_parameters())
    for tensor in plan.rounded:
        if tensor.is_new:
            continue
        stored_as = tensor.target.name if tensor.target.name in plan.untied else tensor.source.name
        name = name_in(model, plan.recipe.parameter_name(stored_as), parameters)
        if name is None:
            continue
        parameter = parameters[name]
        stored = parameter.detach().to("cpu", DTYPES[tensor.source.dtype].torch).contiguous()
        strips = tuple(dim.strips for dim in tensor.dims)
        parameter.data.copy_(effective_source(stored, strips, scale=tensor.scale, offset=tensor.offset))


def compare_activations(
    modules: Mapping[str, PlannedModule], narrow: Mapping[str, Tensor], wide: Mapping[str, Tensor]
) -> list[Comparison]:
    """Compare the recorded outputs of every module whose output the plan predicts.

    Args:
        modules: as `planned_modules` returns them.
        narrow: recorded outputs of the narrow model.
        wide: recorded outputs of the wide model.

    Returns:
        One comparison per module, in the order of execution; the closest of its possible predictions.
    """
    comparisons = []
    for name, output in narrow.items():
        found = wide.get(modules[name].wide_name)
        if found is not None:
            predictions = _predictions(modules[name].weight, output, found)
            candidates = [compare(name, prediction, found.to(prediction.dtype)) for prediction in predictions]
            if candidates:
                comparisons.append(min(candidates, key=lambda comparison: comparison.max_rel))
    return comparisons


def _predictions(tensor: TensorPlan, narrow: Tensor, wide: Tensor) -> Iterator[Tensor]:
    """Yield what the wide output can be: copies of the narrow one, with the tensor's scale and without it.

    It is without the scale if the module undoes it, as an embedding that is multiplied by sqrt(hidden_size) does.
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
    """Return the source index of each wide index of a dimension; shape (wide_size,)."""
    indices = torch.empty(dim.wide_size, dtype=torch.int64)
    strips = [Strip(strip.offset, strip.wide_offset, strip.digits) for strip in dim.strips]
    expand(torch.arange(dim.size), indices, (strips,))
    return indices


def _scales(dim: DimMap) -> Tensor:
    """Return the scale of each wide index of a dimension, which its segment defines; shape (wide_size,)."""
    scales = torch.empty(dim.wide_size, dtype=torch.float64)
    expand(torch.ones(dim.size, dtype=torch.float64), scales, (dim.strips,))
    return scales

"""Predicting the activations of the wide model from those of the narrow one, and comparing them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial

import torch
from torch import Tensor, nn

from mupscale_cli.dtypes import DTYPES
from mupscale_cli.engine.expand import effective_source, expand, source_units
from mupscale_cli.plan import Plan, TensorPlan
from mupscale_cli.plan.copies import FRESH
from mupscale_cli.plan.dims import DimMap
from mupscale_cli.verification.result import Comparison, compare
from mupscale_cli.verification.streamed import change

_CHANNELS = (-1, 1)  # features are the last dimension, or the second one in convolutions


@dataclass
class Trace:
    """What the modules of a model returned while it ran, in the order in which they first ran.

    Attributes:
        outputs: the outputs of every call of each module.
        executions: how often each module ran in one pass of the model, at most; layers that are shared run repeatedly.
        last: the module that ran last; its output reaches the model's.
        comparisons: the largest difference of each module's outputs from those that it should have returned; empty if
            they were only recorded.
    """

    outputs: dict[str, list[Tensor]] = field(default_factory=dict)
    executions: dict[str, int] = field(default_factory=dict)
    last: str | None = None
    comparisons: dict[str, Comparison] = field(default_factory=dict)


@contextmanager
def recording(model: nn.Module, names: Collection[str]) -> Iterator[Trace]:
    """Record the outputs of every named module while the model runs."""
    trace = Trace()
    this_pass: Counter[str] = Counter()

    def record(name: str, output: Tensor) -> None:
        trace.outputs.setdefault(name, []).append(output.detach().to("cpu", copy=True))
        trace.last = name
        this_pass[name] += 1
        trace.executions[name] = max(this_pass[name], trace.executions.get(name, 0))

    start = model.register_forward_pre_hook(lambda _module, _inputs: this_pass.clear())
    try:
        with _watching(model, names, record):
            yield trace
    finally:
        start.remove()


@contextmanager
def disturbing(model: nn.Module, names: Collection[str], disturb: Callable[[Tensor], Tensor]) -> Iterator[Trace]:
    """Change the output of every named module before the next one uses it, and record it, while the model runs."""
    trace = Trace()

    def change_output(name: str, output: Tensor) -> Tensor:
        changed = disturb(output.detach().cpu())
        trace.outputs.setdefault(name, []).append(changed)
        trace.last = name
        return changed.to(output.device)

    with _watching(model, names, change_output):
        yield trace


@contextmanager
def following(
    model: nn.Module,
    path: Trace,
    names: Mapping[str, str],
    predict: Callable[[str, Tensor, Tensor], Iterator[Tensor]],
    disturb: Callable[[Tensor], Tensor] | None = None,
    *,
    is_steered: bool = True,
) -> Iterator[Trace]:
    """Compare the output of every module, while a model runs, with what the narrow model's output predicts.

    A steered model is kept on the path of the narrow one: each output is then replaced by the prediction, except that
    of the last module. Every module starts from the narrow model's values, and differences do not add up.

    Args:
        model: the model.
        path: recorded outputs of the narrow model, from a run on the same inputs.
        names: name in the narrow model of each module.
        predict: yields what an output can be, given the narrow name, the narrow output and this model's.
        disturb: changes the values that replace an output. Default: they are not changed.
        is_steered: whether outputs are replaced.
    """
    trace = Trace(last=path.last)
    expected = {name: iter(outputs) for name, outputs in path.outputs.items()}

    def follow(own_name: str, output: Tensor) -> Tensor | None:
        name = names[own_name]
        narrow = next(expected.get(name, iter(())), None)
        if narrow is None or not narrow.numel():  # the inputs did not reach it
            return None
        actual = output.detach().cpu()
        candidates = [(compare(name, value, actual), value) for value in predict(name, narrow, actual)]
        if not candidates:
            return None
        comparison, value = min(candidates, key=lambda candidate: candidate[0].max_rel)
        so_far = trace.comparisons.setdefault(name, comparison)
        trace.comparisons[name] = max(so_far, comparison, key=lambda each: each.max_rel)
        if not is_steered or name == path.last or value.shape != output.shape:
            return None
        return (disturb(value) if disturb else value).to(output.device, output.dtype)

    with _watching(model, names, follow):
        yield trace


@contextmanager
def _watching(
    model: nn.Module, names: Collection[str], watch: Callable[[str, Tensor], Tensor | None]
) -> Iterator[None]:
    """Call a function with the output of every named module; what it returns replaces the output."""

    def hook(name: str) -> Callable[[nn.Module, object, object], Tensor | None]:
        return lambda _module, _inputs, output: watch(name, output) if isinstance(output, Tensor) else None

    modules = ((name, module) for name, module in model.named_modules() if name in names)
    handles = [module.register_forward_hook(hook(name)) for name, module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def name_in(model: nn.Module, name: str, known: Mapping[str, object]) -> str | None:
    """Return the name of a parameter or module in a model, or None.

    A checkpoint may omit the prefix that a model with a head gives to the names of its base model, and a recipe may
    give it to those of a base model.

    Args:
        model: the model.
        name: name in the recipe.
        known: names in the model.
    """
    prefix = getattr(model, "base_model_prefix", "")
    return next((each for each in (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")) if each in known), None)


@dataclass(frozen=True, slots=True)
class PlannedModule:
    """A module whose weight is in the plan.

    Attributes:
        wide_name: its name in the wide model, where its block may have another number.
        weight: the plan of its weight.
        input_scale: scale of the copies in its input, if all layers that write to the axes that it reads have the same.
    """

    wide_name: str
    weight: TensorPlan
    input_scale: float


def planned_modules(model: nn.Module, plan: Plan) -> dict[str, PlannedModule]:
    """Return the modules whose weight is in the plan, except those of new blocks, by name in the narrow model."""
    modules = dict(model.named_modules())
    planned = {}
    written = written_scales(plan)
    for tensor in plan.tensors:
        narrow, wide = (
            plan.parameter_name(name).rpartition(".")
            for name in (tensor.target.name if tensor.block is None else tensor.source.name, tensor.target.name)
        )
        is_single = narrow[2] == "weight" and tensor.name_copies == 1 and not tensor.is_new
        # A key of the config scales the logits of a tied readout behind it.
        is_single &= plan.tie != "config" or plan.wrapping.plain(tensor.source.name) not in plan.recipe.sharing
        name = name_in(model, narrow[0], modules) if is_single else None
        if name is not None:
            input_scale = math.prod(written.get(axis, 1.0) for axis in tensor.reads)
            planned[name] = PlannedModule(name.removesuffix(narrow[0]) + wide[0], tensor, input_scale)
    return planned


def written_scales(plan: Plan) -> dict[str, float]:
    """Return the scale of what every axis holds, such as the residual stream, if all layers that write to it agree."""
    scales: dict[str, list[float]] = {}
    for tensor in plan.tensors:
        if tensor.writes is not None and tensor.reads:
            scales.setdefault(tensor.writes, []).append(tensor.scale / tensor.taken / tensor.undone)
    return {axis: found[0] for axis, found in scales.items() if all(math.isclose(each, found[0]) for each in found)}


def round_scaled_tensors(model: nn.Module, plan: Plan) -> None:
    """Round the scaled tensors of a narrow model as storing the wide ones does.

    Tensors that the wide model no longer shares are rounded separately, and those that the model joins, together.
    """
    for untied in plan.untied:
        owner, _, kind = plan.parameter_name(untied).rpartition(".")
        name = name_in(model, owner, dict(model.named_modules()))
        if name is not None:
            module = model.get_submodule(name)
            setattr(module, kind, nn.Parameter(getattr(module, kind).detach().clone()))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    rounded: set[int] = set()  # tensors that share a parameter are rounded once
    for tensor in (*plan.rounded, *(joined for joined in plan.parameters if joined.is_rounded)):
        if tensor.is_new:
            continue
        stored_as = tensor.target.name if tensor.target.name in plan.untied else tensor.source.name
        name = name_in(model, plan.parameter_name(stored_as), parameters)
        if name is None or id(parameters[name]) in rounded:
            continue
        rounded.add(id(parameters[name]))
        change(parameters[name], partial(_as_stored, tensor))


def _as_stored(tensor: TensorPlan, values: Tensor) -> Tensor:
    """Return what a narrow tensor becomes by rounding the wide one."""
    stored = values.to("cpu", DTYPES[tensor.source.dtype].torch).contiguous()
    strips = tuple(dim.strips for dim in tensor.dims)
    return effective_source(stored, strips, scale=tensor.scale, offset=tensor.offset)


def predictions(planned: PlannedModule, narrow: Tensor, wide: Tensor) -> Iterator[Tensor]:
    """Yield what the wide output can be: copies of the narrow one, with the tensor's scale and without it.

    Fresh units, about which nothing is known, are as they are. The output shows the scales of the tensor and of the
    input. If the latter is not known, powers of the axes that the layer sums over make up for it, or a constant
    behind the layer undoes them. There is no scale if the module undoes it, as an embedding that is multiplied by
    sqrt(hidden_size) does.
    """
    tensor = planned.weight
    for dim in tensor.dims:
        if any(digit.contracted and not digit.units.is_identity for strip in dim.strips for digit in strip.digits):
            continue
        for position in _CHANNELS:
            if not _fits(dim, narrow, wide, position):
                continue
            sources, places, scales = _copied_units(dim)
            copied, fresh = narrow.index_select(position, sources), wide.to(narrow.dtype)
            scaled = copied.movedim(position, -1).mul(scales.to(narrow.dtype)).movedim(-1, position)
            shown = tensor.scale / tensor.undone
            for scale in dict.fromkeys((shown / tensor.taken, shown * planned.input_scale, shown, 1.0)):
                yield fresh.index_copy(position, places, scaled * scale)
            return


def _fits(dim: DimMap, narrow: Tensor, wide: Tensor, position: int) -> bool:
    if narrow.dim() != wide.dim() or narrow.dim() < 2:
        return False
    expected = list(narrow.shape)
    expected[position] = dim.wide_size
    return narrow.shape[position] == dim.size and list(wide.shape) == expected


@lru_cache(maxsize=64)  # the layers of a model share a few
def _copied_units(dim: DimMap) -> tuple[Tensor, Tensor, Tensor]:
    """Return the source, the place and the scale that the output shows of each copied unit; each of shape (copies,)."""
    sources = source_units(dim)
    places = (sources != FRESH).nonzero().flatten()
    scales = torch.empty(dim.wide_size, dtype=torch.float64)
    strips = tuple(replace(strip, scale=strip.scale / strip.undone) for strip in dim.strips)
    expand(torch.ones(dim.size, dtype=torch.float64), scales, (strips,))
    return sources[places], places, scales[places]

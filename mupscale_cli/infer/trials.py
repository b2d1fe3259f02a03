"""Try a set of choices: widen the tiny model in memory and compare what both models compute."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from mupscale_cli.architecture.layouts import Layout, parse_layout
from mupscale_cli.engine.expand import expand
from mupscale_cli.infer.architecture import Architecture
from mupscale_cli.infer.axes import Axes
from mupscale_cli.infer.differences import TOLERANCE, outputs_error, relative_error
from mupscale_cli.infer.errors import first_line
from mupscale_cli.infer.groups import last_norm, split_last
from mupscale_cli.infer.layouts import Choice, Group, layout_text
from mupscale_cli.infer.shapes import CandidateAxis, scaled_config
from mupscale_cli.infer.vocabulary import kind_of
from mupscale_cli.plan.copies import Axis
from mupscale_cli.plan.dims import map_dim, power_scale
from mupscale_cli.text import NUMBER_IN_NAME

_MAX_CACHED_TENSORS = 4000


@dataclass(frozen=True, slots=True)
class State:
    """A complete set of assumptions.

    Attributes:
        choices: the layout of each group.
        keys: config keys that move with an axis, each as axis, key and power.
    """

    choices: tuple[Choice, ...]
    keys: tuple[tuple[str, str, int], ...] = ()

    def with_choice(self, index: int, choice: Choice) -> State:
        return replace(self, choices=(*self.choices[:index], choice, *self.choices[index + 1 :]))


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the wide model compares with the tiny one.

    Attributes:
        error: the largest difference of the outputs relative to the largest output; infinite if the wide model fails.
        progress: the number of modules, in order of execution, that agree before the first that differs.
        first: the first module that differs, or None.
        problem: why the wide model failed, or None.
    """

    error: float
    progress: int = 0
    first: str | None = None
    problem: str | None = None

    @property
    def agrees(self) -> bool:
        return self.error < TOLERANCE


@dataclass
class Recording:
    """The outputs of a model's containers and norms, and the modules that ran, in order."""

    outputs: dict[str, Tensor] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)


@contextmanager
def recorded(model: nn.Module) -> Iterator[Recording]:
    """Record what runs inside the context. For a module that runs twice, the first output counts."""
    recording = Recording()
    handles = []

    def hook(name: str, keep: bool) -> Callable[[nn.Module, object, object], None]:
        def record(_module: nn.Module, _inputs: object, output: object) -> None:
            recording.order.append(name)
            while isinstance(output, (tuple, list)) and output:
                output = output[0]
            if keep and isinstance(output, Tensor) and output.is_floating_point() and name not in recording.outputs:
                recording.outputs[name] = output.detach().clone()

        return record

    for name, module in model.named_modules():
        if name:
            keep = any(True for _ in module.children()) or "norm" in type(module).__name__.lower()
            handles.append(module.register_forward_hook(hook(name, keep)))
    try:
        yield recording
    finally:
        for handle in handles:
            handle.remove()


class TrialRunner:
    """Widens the tiny model under different assumptions, and compares each wide model with it.

    Args:
        architecture: the architecture.
        axes: its axes.
        groups: its tensors in groups. The tensors of the last norm are split off.
        model: the tiny model, with random values.
    """

    def __init__(self, architecture: Architecture, axes: Axes, groups: tuple[Group, ...], model: nn.Module) -> None:
        self.architecture = architecture
        self.axes = axes
        self.tensors = architecture.disk_tensors(model)
        narrow = architecture.fill(architecture.config, self.tensors)
        with recorded(narrow) as self.narrow:
            self.outputs = architecture.run(narrow)
        self.last_norm = last_norm(groups, self.narrow.order)
        self.groups = split_last(groups, self.last_norm)
        names = (*self.narrow.order, *architecture.config)
        self.is_rotary = any("rotary" in name or "rope" in name for name in names)
        self.num_trials = 0
        self._layouts: dict[str, Layout] = {}
        self._wide_tensors: dict[Any, list[tuple[str, Tensor]]] = {}

    def evaluate(self, state: State, factors: Mapping[str, int]) -> Outcome:
        """Widen by the factors of some axes and compare."""
        self.num_trials += 1
        config = self._wide_config(state, factors)
        all_factors = self.axes.with_aliases({axis.name: factors.get(axis.name, 1) for axis in self.axes.candidates})
        try:
            model = self.architecture.fill(config, self._widen_tensors(state, all_factors))
            with recorded(model) as wide:
                outputs = self.architecture.run(model)
        except Exception as error:  # noqa: BLE001 (architectures raise anything)
            return Outcome(math.inf, -1, None, first_line(error))
        return self._compare(outputs, wide, all_factors)

    def unreached(self) -> dict[str, str]:
        """Return the axes of matrices that no output depends on, each with the name of such a tensor.

        Inputs without images, for example, do not show whether an image encoder computes the same as before. Within a
        part, an axis counts only if no output depends on any of its tensors: the others show how it is laid out.
        """
        found: dict[str, str] = {}
        for group in self.groups:
            if sum(bool(dim.axes) for dim in group.dims) < 2:
                continue  # the layout of a vector, such as a mask token, leaves nothing to be shown
            if not self._is_reached(group):
                found |= {axis: group.names[0] for axis in sorted(group.axes) if axis not in found}
        if any("." in key for key in self.architecture.config):
            return found
        others = [group for group in self.groups if group.axes & found.keys()]
        reached = frozenset().union(*(group.axes for group in others if self._is_reached(group)))
        return {axis: name for axis, name in found.items() if axis not in reached}

    def _is_reached(self, group: Group) -> bool:
        """Return whether some output depends on the tensors of a group."""
        changed = {name: self.tensors[name] + 1 for name in group.names if self.tensors[name].is_floating_point()}
        model = self.architecture.fill(self.architecture.config, {**self.tensors, **changed})
        return not changed or not _are_equal(self.architecture.run(model), self.outputs)

    def _wide_config(self, state: State, factors: Mapping[str, int]) -> dict[str, Any]:
        moving_keys = (CandidateAxis(axis, 1, ((key, power),), key) for axis, key, power in state.keys)
        return scaled_config(self.architecture.config, (*self.axes.candidates, *moving_keys), factors)

    def _widen_tensors(self, state: State, factors: Mapping[str, int]) -> dict[str, Tensor]:
        axes = {name: Axis(name, size, factors[name]) for name, size in self.axes.tiny_sizes.items()}
        key = tuple(sorted(factors.items()))
        tensors: dict[str, Tensor] = {}
        for index, (group, choice) in enumerate(zip(self.groups, state.choices, strict=True)):
            if (index, choice, key) not in self._wide_tensors:
                if len(self._wide_tensors) > _MAX_CACHED_TENSORS:
                    self._wide_tensors.clear()
                self._wide_tensors[index, choice, key] = list(self._widen_group(group, choice, axes))
            tensors.update(self._wide_tensors[index, choice, key])
        return tensors

    def _widen_group(self, group: Group, choice: Choice, axes: Mapping[str, Axis]) -> Iterator[tuple[str, Tensor]]:
        text = layout_text(group, choice)
        layout = self._layouts.setdefault(text, parse_layout(text))
        copies = [axes[axis].factor for _, axis in group.name_axes]
        for name in group.names:
            source = self.tensors[name].contiguous()
            maps = [map_dim(dim, axes, size) for dim, size in zip(layout.dims, source.shape, strict=True)]
            target = torch.empty([dim.wide_size for dim in maps], dtype=source.dtype)
            if source.dim() and source.is_floating_point():
                expand(
                    source,
                    target,
                    [dim.strips for dim in maps],
                    scale=power_scale(layout.powers, axes),
                    offset=layout.offset,
                )
            elif source.dim() == 0 or source.shape == target.shape:
                target = source
            else:
                expand(source, target, [dim.strips for dim in maps])
            for indices in itertools.product(*map(range, copies)):
                yield copy_name(name, group.name_axes, copies, indices), target

    def _compare(self, outputs: Mapping[str, Tensor], wide: Recording, factors: Mapping[str, int]) -> Outcome:
        sizes = self.axes.tiny_sizes
        streams = [(sizes[name], factors.get(name, 1)) for name in self.axes.names if kind_of(name) == "embed"]
        progress, first = 0, None
        for name, narrow_output in self.narrow.outputs.items():
            wide_output = wide.outputs.get(name)
            expected = _expected_output(narrow_output, wide_output, streams)
            if wide_output is None or expected is None:
                continue
            if not relative_error(expected, wide_output) < TOLERANCE:
                first = name
                break
            progress += 1
        error = outputs_error(self.outputs, outputs)
        if isinstance(error, str):
            return Outcome(math.inf, progress, first, error)
        return Outcome(error, progress, first)


def copy_name(name: str, places: tuple[tuple[int, str], ...], copies: list[int], indices: tuple[int, ...]) -> str:
    """Return the name of one copy of a tensor.

    Args:
        name: the tensor's name.
        places: the axes in the name, each with the position of the number that it counts.
        copies: the number of copies along each of these axes.
        indices: which copy, along each of these axes.
    """
    if not places:
        return name
    numbers = {position: (copy, index) for (position, _), copy, index in zip(places, copies, indices, strict=True)}
    counter = itertools.count()

    def number(match: re.Match[str]) -> str:
        copy, index = numbers.get(next(counter), (1, 0))
        return str(int(match.group()) * copy + index)

    return NUMBER_IN_NAME.sub(number, name)


def _are_equal(outputs: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(value, others[name]) for name, value in outputs.items())


def _expected_output(narrow: Tensor, wide: Tensor | None, streams: list[tuple[int, int]]) -> Tensor | None:
    """Return what a module of the wide model should compute, or None if the shapes do not determine it.

    Args:
        narrow: what the module computes in the tiny model.
        wide: what it computes in the wide model.
        streams: the width of each residual stream in the tiny model, and its factor.
    """
    if wide is None or narrow.dim() != wide.dim():
        return None
    factors = [factor for size, factor in streams if size == narrow.shape[-1] and factor > 1]
    if not factors or (len(streams) > 1 and narrow.shape == wide.shape):
        # Outputs that are not the residual stream must not change.
        return narrow if narrow.shape == wide.shape else None
    copied = (narrow.repeat_interleave(factor, -1) for factor in factors)
    return next((expected for expected in copied if expected.shape == wide.shape), None)

"""Trying a set of choices: widen the tiny model in memory and compare what both compute."""

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
from mupscale_cli.infer.candidates import Choice, Group, layout_text
from mupscale_cli.infer.shapes import Idea, varied
from mupscale_cli.plan.copies import Axis
from mupscale_cli.plan.dims import map_dim, power_scale
from mupscale_cli.text import NUMBER_IN_NAME

TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class State:
    """Everything that is assumed: a choice for each group, and config keys that move along with an axis."""

    choices: tuple[Choice, ...]
    keys: tuple[tuple[str, str, int], ...] = ()  # axis, config key, power

    def with_choice(self, index: int, choice: Choice) -> State:
        return replace(self, choices=(*self.choices[:index], choice, *self.choices[index + 1 :]))


@dataclass(frozen=True, slots=True)
class Outcome:
    """How two models compare.

    Attributes:
        error: largest difference of the outputs over the largest output; infinite where the wide one did not run.
        progress: how many modules, in the order in which they run, agreed before the first that did not.
        first: the first module that did not agree, None where all did.
        problem: why the wide model did not run.
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
    """What a model computed: the outputs of its containers and norms, and which modules ran, in order."""

    outputs: dict[str, Tensor] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)


@contextmanager
def recorded(model: nn.Module) -> Iterator[Recording]:
    """Record while the model runs; a module that runs twice is recorded the first time."""
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


class Laboratory:
    """The tiny model, and trials of what widens it."""

    def __init__(self, architecture: Architecture, axes: Axes, groups: tuple[Group, ...], model: nn.Module) -> None:
        self.architecture = architecture
        self.axes = axes
        self.groups = groups
        self.tensors = architecture.stored(model)
        narrow = architecture.fill(architecture.build(architecture.config), architecture.config, self.tensors)
        with recorded(narrow) as self.narrow:
            self.logits = architecture.run(narrow)
        self.num_trials = 0
        self.models: dict[str, nn.Module | None] = {}
        self.layouts: dict[str, Layout] = {}
        self.wide: dict[Any, list[tuple[str, Tensor]]] = {}

    def config(self, state: State, factors: Mapping[str, int]) -> dict[str, Any]:
        """The config of the wide model."""
        ideas = [
            *self.axes.ideas,
            *(Idea(axis, 1, ((key, power),), key) for axis, key, power in state.keys),
        ]
        return varied(self.architecture.config, ideas, factors)

    def all_factors(self, factors: Mapping[str, int]) -> dict[str, int]:
        """With those of the aliases."""
        known = {idea.name: factors.get(idea.name, 1) for idea in self.axes.ideas}
        for alias, product in self.axes.aliases.items():
            known[alias] = math.prod(known[name] for name in product)
        return known

    def evaluate(self, state: State, factors: Mapping[str, int]) -> Outcome:
        """Widen by the factors of some axes and compare."""
        self.num_trials += 1
        config = self.config(state, factors)
        try:
            model = self._model(config)
            tensors = self._widened(state, factors)
            model = self.architecture.fill(model, config, tensors)
            with recorded(model) as wide:
                logits = self.architecture.run(model)
        except Exception as error:  # noqa: BLE001 (whatever the architecture refuses it with)
            return Outcome(math.inf, -1, None, (str(error).strip().splitlines() or [repr(error)])[0])
        return self._compare(logits, wide, self.all_factors(factors))

    def _model(self, config: dict[str, Any]) -> nn.Module:
        key = repr(sorted(config.items(), key=lambda item: item[0]))
        if key not in self.models:
            if len(self.models) > 24:
                self.models.clear()
            self.models[key] = self.architecture.build(config)
        found = self.models[key]
        assert found is not None
        return found

    def _widened(self, state: State, factors: Mapping[str, int]) -> dict[str, Tensor]:
        known = self.all_factors(factors)
        axes = {name: Axis(name, size, known[name]) for name, size in self._sizes.items()}
        key = tuple(sorted(known.items()))
        tensors: dict[str, Tensor] = {}
        for index, (group, choice) in enumerate(zip(self.groups, state.choices, strict=True)):
            if (index, choice, key) not in self.wide:
                if len(self.wide) > 4000:
                    self.wide.clear()
                self.wide[index, choice, key] = list(self._expanded(group, choice, axes))
            tensors.update(self.wide[index, choice, key])
        return tensors

    @property
    def _sizes(self) -> dict[str, int]:
        sizes = dict(self.axes.units)
        for alias, product in self.axes.aliases.items():
            sizes[alias] = math.prod(sizes[name] for name in product)
        return sizes

    def _expanded(self, group: Group, choice: Choice, axes: Mapping[str, Axis]) -> Iterator[tuple[str, Tensor]]:
        text = layout_text(group, choice)
        layout = self.layouts.setdefault(text, parse_layout(text))
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
            for digits in itertools.product(*map(range, copies)):
                yield renamed(name, group.name_axes, copies, digits), target

    def _compare(self, logits: Tensor, wide: Recording, known: Mapping[str, int]) -> Outcome:
        embed, factor = self._sizes.get("embed"), known.get("embed", 1)
        progress, first = 0, None
        for name, output in self.narrow.outputs.items():
            other = wide.outputs.get(name)
            expected = _expected(output, other, embed, factor)
            if other is None or expected is None:
                continue
            if not relative(expected, other) < TOLERANCE:
                first = name
                break
            progress += 1
        if logits.shape != self.logits.shape:
            return Outcome(math.inf, progress, first, f"the output has the shape {tuple(logits.shape)}")
        return Outcome(relative(self.logits, logits), progress, first)


def renamed(name: str, places: tuple[tuple[int, str], ...], copies: list[int], digits: tuple[int, ...]) -> str:
    """The name of one copy of a tensor whose name counts axes."""
    if not places:
        return name
    numbers = {position: (copy, digit) for (position, _), copy, digit in zip(places, copies, digits, strict=True)}
    counter = itertools.count()

    def number(match: re.Match[str]) -> str:
        copy, digit = numbers.get(next(counter), (1, 0))
        return str(int(match.group()) * copy + digit)

    return NUMBER_IN_NAME.sub(number, name)


def relative(expected: Tensor, found: Tensor) -> float:
    """Largest difference over the largest expected value; infinite for what is not finite."""
    size = expected.abs().max().item() if expected.numel() else 0.0
    error = (expected - found).abs().max().item() if expected.numel() else 0.0
    return error / size if size > 0 and math.isfinite(error / size) else (0.0 if error == 0 else math.inf)


def _expected(narrow: Tensor, wide: Tensor | None, embed: int | None, factor: int) -> Tensor | None:
    """What a container of the wide model should return, None where that cannot be told."""
    if wide is None or narrow.dim() != wide.dim():
        return None
    if factor > 1 and narrow.shape[-1] == embed:
        expected = narrow.repeat_interleave(factor, -1)
        return expected if expected.shape == wide.shape else None
    if narrow.shape != wide.shape:
        return None
    # Beside a widened residual stream, what has not grown may still be an inner thing of a module.
    return narrow

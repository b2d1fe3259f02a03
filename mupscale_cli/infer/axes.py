"""Find the axes of an architecture: which config keys count interchangeable units, and which move together."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TypeVar, Union

from torch import nn

from mupscale_cli.infer.architecture import Architecture, Shapes
from mupscale_cli.infer.shapes import CandidateAxis, scaled_config
from mupscale_cli.infer.tiny import randomize
from mupscale_cli.infer.vocabulary import NO_UNITS, meaning, part_of
from mupscale_cli.text import starred

Number = TypeVar("Number", int, Union[int, Fraction])  # a size or whole factor, or any factor
_REPAIR_SECONDS = 3.0  # computing time to find the keys that must move with one key


@dataclass(frozen=True)
class Axes:
    """The axes of an architecture that its shapes reveal.

    Attributes:
        candidates: independent axes.
        aliases: axes that the config ties to a product of others, by name.
        sizes: the size of each axis, aliases included, as an expression over the config.
        given_up: keys that widen tensors in a way that no axis describes, with the reason.
        still: axes that are laid out but cannot grow, since some size is a part of them, with the reason.
    """

    candidates: tuple[CandidateAxis, ...]
    aliases: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sizes: dict[str, str] = field(default_factory=dict)
    given_up: dict[str, str] = field(default_factory=dict)
    still: dict[str, str] = field(default_factory=dict)

    @property
    def independent_sizes(self) -> dict[str, int]:
        """The size of each independent axis in the tiny model."""
        return {axis.name: axis.size for axis in self.candidates}

    @property
    def tiny_sizes(self) -> dict[str, int]:
        """The size of each axis in the tiny model, aliases included."""
        return self.with_aliases(self.independent_sizes)

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.aliases, *(axis.name for axis in self.candidates))

    def equal_counts(self, config: Mapping[str, object]) -> dict[str, str]:
        """Return conditions that keep equal what the tiny model has equal, each with the reason.

        Heads of an encoder and of a decoder, for example, are one axis: their tensors are laid out by the same number.
        """
        return {
            f"{key} == {axis.key}": f"the draft lays out the heads of {key} as it does those of {axis.key}"
            for axis in self.candidates
            for key, power in axis.keys
            if key != axis.key and power == 1 and config[key] == config[axis.key] and meaning(key).counts == "h"
        }

    def with_aliases(self, values: Mapping[str, Number]) -> dict[str, Number]:
        """Add each alias to sizes or factors of axes, as the product of its parts; an absent part counts 1."""
        products = {
            alias: math.prod(values.get(part, 1) for part in product) for alias, product in self.aliases.items()
        }
        return {**values, **products}


def axis_name(key: str, taken: Iterable[str]) -> str:
    """Choose a short name for the axis that a key counts. It differs from the key, which names a config value."""
    name, last = meaning(key).counts, key.rpartition(".")[2]
    if not name:
        name = re.sub(r"^(num|n)_|_(size|dim|rank|width)$", "", last)
        name = re.sub(r"\W", "_", name)
        if name == last:
            name = f"{last}_axis"
    return part_axis(name, key, taken)


def part_axis(kind: str, key: str, taken: Iterable[str]) -> str:
    """Return a free name for an axis of some kind: `embed`, or `vision_embed` if its key is in another part."""
    part = part_of(key)
    base, number = f"{part}_{kind}" if part else kind, 2
    name = base
    while name in taken:
        name, number = f"{base}{number}", number + 1
    return name


def find_axes(architecture: Architecture) -> Axes:
    """Find the axes by doubling keys of the config and comparing the shapes on disk."""
    return _AxisFinder(architecture).find()


@dataclass
class _AxisFinder:
    """The axes found so far, and the keys that already belong to one."""

    architecture: Architecture
    candidates: list[CandidateAxis] = field(default_factory=list)
    aliases: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sizes: dict[str, str] = field(default_factory=dict)
    assigned: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.config = self.architecture.config
        self.base = self.architecture.shapes(self.config)
        self.rows = _rows(self.architecture.reusable(self.config))

    def find(self) -> Axes:
        keys = [key for key, value in self.config.items() if _may_count_units(key, value)]
        sections = dict.fromkeys(key.rpartition(".")[0] for key in keys)
        for section in sections:
            own = [key for key in keys if key.rpartition(".")[0] == section]
            self._find_heads(own, [*own, *(key for key in keys if key not in own)])
        for key in keys:
            if key not in self.assigned:
                self._find_axis(key, keys)
        return Axes(tuple(self.candidates), self.aliases, self.sizes)

    def _add(self, name: str, key: str, keys: Mapping[str, int], size: int, expression: str) -> None:
        self.candidates.append(CandidateAxis(name, size, tuple(keys.items()), key))
        self.sizes[name] = expression

    def _find_heads(self, own: list[str], keys: list[str]) -> None:
        """Find attention heads, and the residual stream if the config makes it a product of them.

        Args:
            own: the keys of one section of the config, whose heads are found.
            keys: these keys, and then those of the other sections.
        """
        heads = [key for key in own if meaning(key).counts == "h"]
        kv = [key for key in own if meaning(key).counts == "kv"]
        self.assigned.update((*heads, *kv))
        if not heads:
            return
        hidden = next((key for key in own if meaning(key).counts == "embed"), None)
        companions = self._companions_of_heads(heads, kv, hidden, keys)
        linked = hidden is not None and companions is None
        tie = {hidden: 1} if linked and hidden else {}
        head, each = heads[0], dict.fromkeys(heads, 1) | (companions or {})
        if linked:
            tie |= self._required_companions({**tie, **each, **dict.fromkeys(kv, 1)}, keys)
        if kv and self._kv_matters([*each], kv, tie):
            size = self.config[kv[0]]
            kv_size = f"{kv[0]} or {head}" if kv[0] != head else head
            products = [self._name("kv", head), self._name("g", head)]
            self._add(products[0], kv[0], {**tie, **each, **dict.fromkeys(kv, 1)}, size, kv_size)
            self._add(products[1], head, {**tie, **each}, self.config[head] // size, f"{head} // {products[0]}")
        else:
            silent = {key: 1 for key in kv if self.config[key] == self.config[head]}
            products = [self._name("h", head)]
            self._add(products[0], head, {**tie, **each, **silent}, self.config[head], head)
        if linked and hidden:
            products.append(self._name("d", hidden))
            stream = self._name("embed", hidden)
            self.aliases[stream] = tuple(products)
            unassigned = [key for key in keys if key not in self.assigned]
            alone = {hidden: 1} | self._required_companions({hidden: 1}, unassigned)
            self._add(products[-1], hidden, alone, self.config[hidden] // self.config[head], f"{hidden} // {head}")
            self.sizes[stream] = hidden
            self.assigned.update((*tie, *alone))

    def _name(self, kind: str, key: str) -> str:
        return part_axis(kind, key, (*self.sizes, *self.config))

    def _find_axis(self, key: str, keys: list[str]) -> None:
        """Add the axis that a key counts, if it counts one."""
        powers, shapes = {key: 1}, self._shapes({key: 1})
        if shapes is None or not self._is_proportional(powers):
            repaired = self._repair({key: 1}, keys)
            if repaired is None:
                return
            powers, shapes = repaired
        if shapes == self.base or any(dict(axis.keys) == powers for axis in self.candidates):
            return
        counted = self._counting_key(powers)
        divisor = self._divisor(shapes, self.config[counted])
        expression = counted if divisor == 1 else f"{counted} // {divisor}"
        name = axis_name(counted, (*self.sizes, *self.config))
        self._add(name, counted, powers, self.config[counted] // divisor, expression)

    def _scaled(self, powers: Mapping[str, int], factor: int = 2) -> dict[str, object]:
        return scaled_config(self.config, (CandidateAxis("", 1, tuple(powers.items()), ""),), {"": factor})

    def _shapes(self, powers: Mapping[str, int], factor: int = 2) -> Shapes | None:
        """Return the shapes with keys multiplied by powers of a factor, or None if that cannot be built."""
        try:
            return self.architecture.shapes(self._scaled(powers, factor))
        except Exception:  # noqa: BLE001 (architectures raise anything)
            return None

    def _runs(self, powers: Mapping[str, int]) -> bool:
        try:
            self.architecture.run(randomize(self.architecture.reusable(self._scaled(powers))))
        except Exception:  # noqa: BLE001 (architectures raise anything)
            return False
        return True

    def _companions_of_heads(
        self, heads: list[str], kv: list[str], hidden: str | None, keys: list[str]
    ) -> dict[str, int] | None:
        """Return the keys that move with the heads, or None if the residual stream must move too."""
        alone, grouped = dict.fromkeys(heads, 1), dict.fromkeys((*heads, *kv), 1)
        for some in (grouped, alone):
            shapes = self._shapes(some)
            if shapes is None:
                repaired = self._repair(some, [key for key in keys if key != hidden])
                return _others(repaired[0], some) if repaired else None
            runs = self._runs(some)
            if some is grouped and not runs:
                return None
            if runs and self._changes(shapes)[1]:  # heads become smaller
                return None
        grouped_shapes = self._shapes(grouped)
        return {} if grouped_shapes is not None and self._changes(grouped_shapes)[0] else None

    def _changes(self, shapes: Shapes) -> tuple[bool, bool]:
        """Return whether some tensor is larger than before, and whether some tensor is smaller."""
        sizes = [(math.prod(shapes[name]), math.prod(shape)) for name, shape in self.base.items() if name in shapes]
        return any(new > old for new, old in sizes), any(new < old for new, old in sizes)

    def _kv_matters(self, heads: list[str], kv: list[str], tie: Mapping[str, int]) -> bool:
        with_kv = self._shapes({**tie, **dict.fromkeys(heads, 1), **dict.fromkeys(kv, 1)})
        without = self._shapes({**tie, **dict.fromkeys(heads, 1)})
        return with_kv is not None and with_kv != without

    def _repair(self, start: Mapping[str, int], keys: Iterable[str]) -> tuple[dict[str, int], Shapes] | None:
        """Find one more key without which the keys of `start` cannot move; return all of them and the shapes."""
        fractions = (key for key, value in self.config.items() if isinstance(value, float) and "expand" in key)
        others = [other for other in dict.fromkeys((*fractions, *keys)) if other not in start]
        expansions = [other for other in others if "expand" in other]
        tries = [(other, power) for other in expansions for power in (-1, 1)]
        tries += [(other, power) for power in (1, -1) for other in others if other not in expansions]
        end = time.process_time() + _REPAIR_SECONDS
        for other, power in tries:
            if time.process_time() > end:
                break
            powers = {**start, other: power}
            shapes = self._shapes(powers)
            if shapes is not None and shapes != self.base and self._is_proportional(powers):
                return powers, shapes
        return None

    def _required_companions(self, start: Mapping[str, int], keys: Iterable[str]) -> dict[str, int]:
        """Return the keys that must move with some keys so that the model builds, runs and keeps its structure."""
        if self._is_proportional(start):
            return {}
        repaired = self._repair(start, keys)
        return _others(repaired[0], start) if repaired else {}

    def _is_proportional(self, powers: Mapping[str, int]) -> bool:
        """Return whether the structure stays and dimensions grow linearly with the factors 1, 2 and 3."""
        twice, thrice = self._shapes(powers, 2), self._shapes(powers, 3)
        if twice is None or self._has_other_tensors(twice) or self._has_other_rows(powers) or not self._runs(powers):
            return False
        for name, shape in self.base.items():
            if len(twice.get(name, ())) != len(shape):
                return False
            after = (thrice or {}).get(name, ())
            for dim, (one, two) in enumerate(zip(shape, twice[name], strict=True)):
                if two < one or (len(after) == len(shape) and after[dim] - two != two - one):
                    return False
        return True

    def _has_other_tensors(self, shapes: Shapes) -> bool:
        return {starred(name) for name in shapes} != {starred(name) for name in self.base}

    def _has_other_rows(self, powers: Mapping[str, int]) -> bool:
        """Return whether a table gets more rows: inputs name a row by its number, so that rows are no units."""
        wide = _rows(self.architecture.reusable(self._scaled(powers)))
        return any(wide.get(name, rows) != rows for name, rows in self.rows.items())

    def _counting_key(self, powers: Mapping[str, int]) -> str:
        """Return the key that counts the units: the smallest of the keys that move together."""
        integers = (key for key, power in powers.items() if power > 0 and type(self.config[key]) is int)
        return min(integers, key=lambda key: ("expand" in key, self.config[key]))

    def _divisor(self, shapes: Shapes, size: int) -> int:
        """Return the integer that divides a key before it becomes a dimension, usually 1."""
        slopes = [
            two - one
            for name, shape in self.base.items()
            for one, two in zip(shape, shapes.get(name, shape), strict=True)
            if two > one
        ]
        least = min(slopes, default=size)
        return size // least if least < size and size % least == 0 else 1


def _rows(model: nn.Module) -> dict[str, int]:
    """Return the number of rows of each table that a model looks rows up in, by module."""
    return {
        name: len(module.weight)
        for name, module in model.named_modules()
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag))
    }


def _may_count_units(key: str, value: object) -> bool:
    name = key.rpartition(".")[2]
    return type(value) is int and value >= 1 and not NO_UNITS.fullmatch(name) and not name.startswith("_")


def _others(powers: Mapping[str, int], known: Mapping[str, int]) -> dict[str, int]:
    return {key: power for key, power in powers.items() if key not in known}

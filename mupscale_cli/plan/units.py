"""Rewriting values that name units: lists of heads, of layers, and with an entry for each layer. Pure Python."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from mupscale_cli.architecture.expressions import look_up
from mupscale_cli.architecture.types import UnitsRule
from mupscale_cli.architecture.units import Anything, Each, Group, ListOf, Number, Template
from mupscale_cli.errors import PlanError
from mupscale_cli.plan.blocks import BlockMap
from mupscale_cli.plan.copies import FRESH, Axis
from mupscale_cli.plan.types import ConfigChange
from mupscale_cli.text import counted, shown

NO_DEFAULTS: Mapping[str, Any] = MappingProxyType({})
_NUMBERED = re.compile(r"(.*\D)([0-9]+)")  # `stage3`


@dataclass(frozen=True)
class UnitMap:
    """Where the units of an axis or the blocks of a stack are in the wide network.

    Attributes:
        name: the axis or stack.
        sources: the old unit of each new one, or `FRESH`.
        own: the new numbers of each old unit, equally many for all units. Those of a block are its new place only: a
            new block that copies it has other inputs.
        alike: the new numbers of each old unit and of all copies of it.
        is_stack: whether the units are blocks.
    """

    name: str
    sources: tuple[int, ...]
    own: tuple[tuple[int, ...], ...]
    alike: tuple[tuple[int, ...], ...]
    is_stack: bool = False

    @property
    def size(self) -> int:
        return len(self.own)

    @property
    def wide_size(self) -> int:
        return len(self.sources)

    @property
    def is_identity(self) -> bool:
        return self.sources == tuple(range(self.size))

    def counted(self) -> str:
        return counted(self.size, "block" if self.is_stack else "unit")


def map_units(axes: Iterable[Axis], blocks: Mapping[str, BlockMap]) -> dict[str, UnitMap]:
    """Return the map of every axis with a size and of every stack that grows, by name.

    Args:
        axes: the axes, with their factors.
        blocks: the block map of every stack that grows.
    """
    maps = {name: UnitMap(name, b.sources, tuple((p,) for p in b.old), b.positions, True) for name, b in blocks.items()}
    for axis in axes:
        if axis.size is not None:
            units = axis.copy_map()
            least = min(map(len, units.positions), default=0)  # a mean over the listed units weighs all of them alike
            own = tuple(positions[:least] for positions in units.positions)
            maps[axis.name] = UnitMap(axis.name, units.all_sources, own, units.positions)
    return maps


def rewrite_units(
    rules: Iterable[UnitsRule],
    content: Mapping[str, Any],
    maps: Mapping[str, UnitMap],
    file: str,
    defaults: Mapping[str, Any] = NO_DEFAULTS,
) -> tuple[ConfigChange, ...]:
    """Return the changes of a JSON file whose values name units.

    Args:
        rules: the rules of this file.
        content: its content.
        maps: as `map_units` returns them. Units without a map keep their numbers.
        file: its name, for messages.
        defaults: values of keys that it lacks; other absent keys stay absent.

    Raises:
        PlanError: a value has another form than its rule says, or names a unit that does not exist.
    """
    changes = []
    for rule in rules:
        before = look_up(rule.key, content)
        value = look_up(rule.key, defaults) if before is None else before
        if value is None or all(maps[name].is_identity for name in rule.names & maps.keys()):
            continue
        after = _Rewriting(maps, f"`{rule.key}` in {file}").single(rule.template, value)
        if after != value:
            changes.append(ConfigChange(rule.key, before, after))
    return tuple(changes)


@dataclass(frozen=True)
class _Rewriting:
    """The rewriting of one value; `where` names it in messages."""

    maps: Mapping[str, UnitMap]
    where: str

    def single(self, template: Template, value: Any) -> Any:
        """Rewrite a value that stays one value: a unit becomes its first copy, the last block of a kind its last."""
        is_last = isinstance(template, Number) and template.word == "like"
        return self.all(template, value)[-1 if is_last else 0]

    def all(self, template: Template, value: Any) -> list[Any]:
        """Rewrite an item of a list, which becomes an item for each copy of the units that it names."""
        match template:
            case Anything():
                return [value]
            case Number(word="first"):
                return [self._count(template, value)]
            case Number(word="runs"):
                return [self._runs(template, value)]
            case Number(word="places"):
                return [self._places(template, value)]
            case Number():
                return self._numbers(template, value)
            case ListOf():
                items = [new for item in self._list(value) for new in self.all(template.item, item)]
                return [items if isinstance(value, list) else items[0]]
            case Group():
                items = self._list(value, len(template.items))
                parts = map(self.all, template.items, items)
                return [list(combination) for combination in itertools.product(*parts)]
            case Each():
                return [self._each(template, value)]

    def _each(self, template: Each, value: Any) -> Any:
        units = self.maps.get(template.axis.name)
        if not isinstance(value, list):
            return value
        if units is None:
            return [self.single(template.item, item) for item in value]
        if len(value) != units.size:
            raise PlanError(f"{self.where} has {len(value)} entries for {units.counted()} of `{units.name}`")
        if FRESH in units.sources:
            raise PlanError(
                f"{self.where} has an entry for each unit of `{units.name}`, but fresh units have none",
                hint=f"choose a multiple of {units.size}",
            )
        items = [self.single(template.item, item) for item in value]
        return [items[source] for source in units.sources]

    def _numbers(self, template: Number, value: Any) -> list[Any]:
        """Return the new numbers of a unit, or of a unit of a product of axes; a number below 0 counts from the end."""
        if isinstance(value, str):
            named = _NUMBERED.fullmatch(value)
            return [f"{named[1]}{n}" for n in self._numbers(template, int(named[2]))] if named else [value]
        if type(value) is not int:
            raise self._unexpected(value, "a whole number")
        units = [self.maps[axis.name] for axis in template.axes if axis.name in self.maps]
        if len(units) < len(template.axes):
            return [value]
        is_place = template.word == "after"  # there is one more place between and around blocks than blocks
        size = math.prod(axis.size for axis in units) + is_place
        wide_size = math.prod(axis.wide_size for axis in units) + is_place
        number = value + size if value < 0 else value
        if not 0 <= number < size:
            raise PlanError(
                f"{self.where} has the number {value}, but `{' '.join(axis.name for axis in units)}` has {size}",
                hint="check that the file belongs to this model; numbers count from 0",
            )
        if is_place and number == size - 1:
            new = [wide_size - 1]
        else:
            digits: list[tuple[int, ...]] = []
            for axis in reversed(units):
                number, digit = divmod(number, axis.size)
                digits.insert(0, (axis.alike if template.word == "like" else axis.own)[digit])
            new = [0]
            for axis, positions in zip(units, digits, strict=True):
                new = [outer * axis.wide_size + position for outer in new for position in positions]
        return [number - wide_size if value < 0 else number for number in new]

    def _count(self, template: Number, value: Any) -> Any:
        """Return the new number of blocks at the front."""
        units = self.maps.get(template.axes[0].name)
        if units is None or type(value) is not int:
            return value
        count = sum(source < value for source in units.sources)
        if any(source >= value for source in units.sources[:count]):
            raise PlanError(
                f"{self.where} says that the first {counted(value, 'block')} of `{units.name}` differ from the others, "
                "but new blocks would separate them",
                hint="use `--layers-at interleaved`",
            )
        return count + max(value - units.size, 0)

    def _runs(self, template: Number, value: Any) -> Any:
        units = self.maps.get(template.axes[0].name)
        if units is None or not isinstance(value, list):
            return value
        types = [each for run, count in value for _ in range(count) for each in run]
        return [[[types[source] for source in units.sources], 1]]

    def _places(self, template: Number, value: Any) -> Any:
        """Return the names of the places around all blocks, such as `stem, stage1, stage2`."""
        units = self.maps.get(template.axes[0].name)
        last = (
            _NUMBERED.fullmatch(value[-1]) if isinstance(value, list) and value and isinstance(value[-1], str) else None
        )
        if units is None or last is None:
            return value
        return [value[0], *(f"{last[1]}{number}" for number in range(1, units.wide_size + 1))]

    def _list(self, value: Any, length: int | None = None) -> list[Any]:
        """Return the items of a list; without a length, those of a value that is no list are itself."""
        if isinstance(value, list) and length in (None, len(value)):
            return value
        if length is None:
            return [value]
        raise self._unexpected(value, f"a list of {length}")

    def _unexpected(self, value: Any, expected: str) -> PlanError:
        return PlanError(f"{self.where} contains {shown(value)}, expected {expected}")

"""Which config keys count interchangeable units, and which of them move together."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mupscale_cli.infer.architecture import Architecture, Shapes
from mupscale_cli.infer.shapes import Idea, varied
from mupscale_cli.infer.vocabulary import NO_UNITS, meaning
from mupscale_cli.text import starred

_REPAIR_SECONDS = 3.0  # for what must move with one key


@dataclass(frozen=True)
class Axes:
    """The axes of an architecture, as far as its shapes tell them.

    Attributes:
        ideas: independent axes.
        aliases: an axis that the config ties to the product of others, by name.
        sizes: the expression over the config of each axis, aliases included.
        names: for tensors, which numbers in a name are counted by an axis.
        refused: keys that could not be doubled alone, with the reason.
        given_up: keys that make tensors wider in a way that is not described, with the reason.
    """

    ideas: tuple[Idea, ...]
    aliases: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sizes: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    given_up: dict[str, str] = field(default_factory=dict)

    @property
    def units(self) -> dict[str, int]:
        return {idea.name: idea.size for idea in self.ideas}

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.aliases, *(idea.name for idea in self.ideas))


def axis_name(key: str, taken: Iterable[str]) -> str:
    """A short name for the axis that a key counts; never the key itself, which the config has."""
    name = meaning(key).counts
    if not name:
        name = re.sub(r"^(num|n)_|_(size|dim|rank|width)$", "", key)
        name = re.sub(r"\W", "_", name)
        if name == key:
            name = f"{key}_axis"
    base, number = name, 2
    while name in taken:
        name, number = f"{base}{number}", number + 1
    return name


def find_axes(architecture: Architecture) -> Axes:
    """Find the axes by doubling keys of the config and looking at the shapes on disk."""
    return _Finder(architecture).find()


@dataclass
class _Finder:
    """The axes found so far, and the keys that are already part of one."""

    architecture: Architecture
    refused: dict[str, str] = field(default_factory=dict)
    ideas: list[Idea] = field(default_factory=list)
    aliases: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sizes: dict[str, str] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.config = self.architecture.config
        self.base = self.architecture.shapes(self.config)

    def find(self) -> Axes:
        keys = [key for key, value in self.config.items() if self._is_candidate(key, value)]
        self._find_heads(keys)
        for key in keys:
            if key not in self.done:
                self._find_other(key, keys)
        return Axes(tuple(self.ideas), self.aliases, self.sizes, self.refused)

    def _add(self, name: str, key: str, keys: Mapping[str, int], size: int, expression: str) -> None:
        self.ideas.append(Idea(name, size, tuple(keys.items()), key))
        self.sizes[name] = expression

    def _find_heads(self, keys: list[str]) -> None:
        """Attention heads, with the residual stream where the config makes it a product of them."""
        heads = [key for key in keys if meaning(key).counts == "h"]
        kv = [key for key in keys if meaning(key).counts == "kv"]
        self.done.update((*heads, *kv))
        if not heads:
            return
        hidden = next((key for key in keys if meaning(key).counts == "embed"), None)
        with_heads = self._with_heads(heads, kv, hidden, keys)
        linked = hidden is not None and with_heads is None
        tie = {hidden: 1} if linked and hidden else {}
        head, each = heads[0], dict.fromkeys(heads, 1) | (with_heads or {})
        if linked:
            tie |= self._together({**tie, **each, **dict.fromkeys(kv, 1)}, keys)
        if kv and self._kv_matters([*each], kv, tie):
            size = self.config[kv[0]]
            self._add("kv", kv[0], {**tie, **each, **dict.fromkeys(kv, 1)}, size, _or(kv[0], head))
            self._add("g", head, {**tie, **each}, self.config[head] // size, f"{head} // kv")
        else:
            silent = {key: 1 for key in kv if self.config[key] == self.config[head]}
            self._add("h", head, {**tie, **each, **silent}, self.config[head], head)
        if linked and hidden:
            self.aliases["embed"] = (*(idea.name for idea in self.ideas), "d")
            alone = {hidden: 1} | self._together({hidden: 1}, [key for key in keys if key not in self.done])
            self._add("d", hidden, alone, self.config[hidden] // self.config[head], f"{hidden} // {head}")
            self.sizes["embed"] = hidden
            self.done.update((*tie, *alone))

    def _find_other(self, key: str, keys: list[str]) -> None:
        """The axis that a key counts, if it counts one."""
        extra, shapes = {key: 1}, self._shapes({key: 1})
        if shapes is None or not self._is_proper(extra):
            found = self._repair(key, keys)
            if found is None:
                return
            extra, shapes = found
        if shapes == self.base or any(dict(idea.keys) == extra for idea in self.ideas):
            return
        counted = self._counting(extra)
        share = self._share(shapes, self.config[counted])
        expression = counted if share == 1 else f"{counted} // {share}"
        name = axis_name(counted, (*self.sizes, *self.config))
        self._add(name, counted, extra, self.config[counted] // share, expression)

    def _is_candidate(self, key: str, value: object) -> bool:
        return type(value) is int and value >= 1 and not NO_UNITS.fullmatch(key) and not key.startswith("_")

    def _shapes(self, keys: Mapping[str, int], factor: int = 2) -> Shapes | None:
        """Shapes with keys multiplied by powers of a factor; None where that cannot be built."""
        idea = Idea("", 1, tuple(keys.items()), "")
        try:
            return self.architecture.shapes(varied(self.config, (idea,), {"": factor}))
        except Exception as error:  # noqa: BLE001 (whatever the architecture refuses it with)
            self.refused[next(iter(keys))] = (str(error).strip().splitlines() or [repr(error)])[0]
            return None

    def _with_heads(
        self, heads: list[str], kv: list[str], hidden: str | None, keys: list[str]
    ) -> dict[str, int] | None:
        """What moves with more heads where the residual stream does not; None where it must."""
        alone, grouped = dict.fromkeys(heads, 1), dict.fromkeys((*heads, *kv), 1)
        for some in (grouped, alone):
            shapes = self._shapes(some)
            if shapes is None:
                found = self._repair(heads[0], [key for key in keys if key != hidden], some)
                return {key: power for key, power in found[0].items() if key not in some} if found else None
            runs = self._runs(some)
            if some is grouped and not runs:
                return None
            if runs and self._sizes_move(shapes)[1]:  # a head becomes smaller
                return None
        grown = self._shapes(grouped)
        return {} if grown is not None and self._sizes_move(grown)[0] else None

    def _sizes_move(self, shapes: Shapes) -> tuple[bool, bool]:
        """Whether some tensor is larger than before, and whether some is smaller."""
        sizes = [(math.prod(shapes[name]), math.prod(shape)) for name, shape in self.base.items() if name in shapes]
        return any(new > old for new, old in sizes), any(new < old for new, old in sizes)

    def _kv_matters(self, heads: list[str], kv: list[str], tie: Mapping[str, int]) -> bool:
        with_kv = self._shapes({**tie, **dict.fromkeys(heads, 1), **dict.fromkeys(kv, 1)})
        without = self._shapes({**tie, **dict.fromkeys(heads, 1)})
        return with_kv is not None and with_kv != without

    def _repair(
        self, key: str, keys: Iterable[str], together: Mapping[str, int] | None = None
    ) -> tuple[dict[str, int], Shapes] | None:
        """What must move with a key that cannot be doubled alone."""
        start = dict(together or {key: 1})
        others = [other for other in dict.fromkeys((*self._floats(), *keys)) if other not in start]
        expansions = [other for other in others if "expand" in other]
        tries = [(other, power) for other in expansions for power in (-1, 1)]
        tries += [(other, power) for power in (1, -1) for other in others if other not in expansions]
        end = time.monotonic() + _REPAIR_SECONDS
        for other, power in tries:
            if time.monotonic() > end:
                break
            found = {**start, other: power}
            shapes = self._shapes(found)
            if shapes is not None and shapes != self.base and self._is_proper(found):
                return found, shapes
        return None

    def _is_proper(self, keys: Mapping[str, int]) -> bool:
        """Whether shapes grow in proportion when keys are multiplied by 2 and by 3, and the structure stays."""
        twice, thrice = self._shapes(keys, 2), self._shapes(keys, 3)
        if twice is None or self._is_another(twice) or not self._runs(keys):
            return False
        for name, shape in self.base.items():
            if len(twice.get(name, ())) != len(shape):
                return False
            after = (thrice or {}).get(name, ())
            for dim, (one, two) in enumerate(zip(shape, twice[name], strict=True)):
                if two < one or (len(after) == len(shape) and after[dim] - two != two - one):
                    return False
        return True

    def _runs(self, keys: Mapping[str, int]) -> bool:
        config = varied(self.config, (Idea("", 1, tuple(keys.items()), ""),), {"": 2})
        try:
            self.architecture.run(self.architecture.build(config))
        except Exception as error:  # noqa: BLE001 (whatever the architecture refuses it with)
            self.refused[next(iter(keys))] = (str(error).strip().splitlines() or [repr(error)])[0]
            return False
        return True

    def _counting(self, keys: Mapping[str, int]) -> str:
        """Of keys that move together, the one that counts the units: the smallest."""
        whole = (key for key, power in keys.items() if power > 0 and type(self.config[key]) is int)
        return min(whole, key=lambda key: ("expand" in key, self.config[key]))

    def _share(self, shapes: Shapes, size: int) -> int:
        """By which whole number a key is divided before it becomes a size; 1 as a rule."""
        slopes = [
            two - one
            for name, shape in self.base.items()
            for one, two in zip(shape, shapes.get(name, shape), strict=True)
            if two > one
        ]
        least = min(slopes, default=size)
        return size // least if least < size and size % least == 0 else 1

    def _is_another(self, shapes: Shapes) -> bool:
        """Whether the shapes are those of another structure, with tensors that have no like in the first."""
        return {starred(name) for name in shapes} != {starred(name) for name in self.base}

    def _together(self, start: Mapping[str, int], keys: Iterable[str]) -> dict[str, int]:
        """What must move beside some keys so that the model can be built, runs and keeps its structure."""
        if self._is_proper(start):
            return {}
        found = self._repair(next(iter(start)), keys, start)
        return {key: power for key, power in found[0].items() if key not in start} if found else {}

    def _floats(self) -> list[str]:
        return [key for key, value in self.config.items() if isinstance(value, float) and "expand" in key]


def _or(first: str, second: str) -> str:
    return f"{first} or {second}" if first != second else first

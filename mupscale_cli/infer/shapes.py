"""What a size is made of: finite differences over doubled axes give it as a multilinear polynomial."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mupscale_cli.errors import MupscaleError
from mupscale_cli.infer.architecture import Architecture, Shapes

Config = dict[str, Any]


class InferError(MupscaleError):
    """An architecture for which no recipe could be drafted, or only one that does not hold.

    Args:
        axes: those that are in the way, where it is known.
    """

    def __init__(
        self, message: str, *, axes: frozenset[str] = frozenset(), excerpt: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, excerpt=excerpt, hint=hint)
        self.axes = axes


@dataclass(frozen=True, slots=True)
class Idea:
    """An axis to be tried: the config keys that move with it.

    Attributes:
        name: of the axis.
        size: units in the tiny model.
        keys: by which power of the axis' factor each key is multiplied.
        key: the key that gives the axis its name.
    """

    name: str
    size: int
    keys: tuple[tuple[str, int], ...]
    key: str


@dataclass(frozen=True, slots=True)
class Monomial:
    """`count` times the product of some axes; no axes for a constant."""

    axes: tuple[str, ...]
    count: int


Polynomial = tuple[Monomial, ...]


def varied(config: Mapping[str, Any], ideas: Iterable[Idea], factors: Mapping[str, int]) -> Config:
    """The config with every key multiplied as the axes ask; whole numbers stay whole where they can."""
    changed = dict(config)
    for idea in ideas:
        factor = factors.get(idea.name, 1)
        if factor == 1:
            continue
        for key, power in idea.keys:
            changed[key] = scaled(changed[key], factor, power)
    return changed


def scaled(value: Any, factor: int, power: int) -> Any:
    """A config value times factor ** power, item by item in a list."""
    if isinstance(value, list):
        return [scaled(item, factor, power) for item in value]
    if value is None or isinstance(value, (bool, str)):
        return value
    if power > 0:
        return value * factor**power
    exact = value / factor**-power
    return int(exact) if isinstance(value, int) and exact.is_integer() else exact


class Measure:
    """The shapes on disk for any set of doubled axes; built once each."""

    def __init__(self, architecture: Architecture, ideas: tuple[Idea, ...]) -> None:
        self.architecture = architecture
        self.ideas = {idea.name: idea for idea in ideas}
        self.known: dict[frozenset[str], Shapes] = {}

    def shapes(self, doubled: frozenset[str]) -> Shapes:
        """Names and shapes on disk.

        Raises:
            InferError: the architecture refuses these axes together.
        """
        if doubled not in self.known:
            config = varied(self.architecture.config, self.ideas.values(), dict.fromkeys(doubled, 2))
            try:
                self.known[doubled] = self.architecture.shapes(config)
            except Exception as error:  # whatever the architecture refuses it with
                what = (str(error).strip().splitlines() or [repr(error)])[0]
                raise InferError(
                    f"{' and '.join(sorted(doubled))} cannot be doubled together: {what}", axes=doubled
                ) from error
        return self.known[doubled]


def subsets(items: Iterable[str]) -> list[frozenset[str]]:
    """Every subset, the small ones first."""
    items = sorted(items)
    return [frozenset(some) for size in range(len(items) + 1) for some in itertools.combinations(items, size)]


def polynomial(size: Callable[[frozenset[str]], int], axes: Iterable[str], units: Mapping[str, int]) -> Polynomial:
    """A size as a sum of products of axes.

    With f(S) the size where the axes in S are doubled, a multilinear f is the sum over sets T of
    g(T) 2^|T n S|. Its finite differences over S are the sum of g(T) over all T that contain S,
    from which g follows by inclusion and exclusion.

    Args:
        size: f.
        axes: those that the size depends on.
        units: the undoubled size of each axis.

    Raises:
        ValueError: the size is not such a sum with whole counts.
    """
    sets = subsets(axes)
    differences = {
        some: sum((-1) ** (len(some) - len(part)) * size(part) for part in sets if part <= some) for some in sets
    }
    monomials = []
    for some in sets:
        value = sum((-1) ** (len(other) - len(some)) * differences[other] for other in sets if some <= other)
        unit = math.prod(units[name] for name in some)
        if value % unit or value < 0:
            raise ValueError(f"{value} is not a multiple of {' x '.join(sorted(some))} = {unit}")
        if value:
            monomials.append(Monomial(tuple(sorted(some)), value // unit))
    return tuple(monomials)

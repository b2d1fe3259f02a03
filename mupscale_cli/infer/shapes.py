"""Sizes of tensors as polynomials of the axes, found by doubling axes and taking finite differences."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mupscale_cli.infer.architecture import Architecture, Config, Shapes
from mupscale_cli.infer.errors import InferError, first_line


@dataclass(frozen=True, slots=True)
class CandidateAxis:
    """An axis to try, and the config keys that move with it.

    Attributes:
        name: the axis' name in the recipe.
        size: number of units in the tiny model.
        keys: config keys, each with the power of the axis' factor that multiplies it.
        key: the config key that counts the axis' units.
    """

    name: str
    size: int
    keys: tuple[tuple[str, int], ...]
    key: str


@dataclass(frozen=True, slots=True)
class Monomial:
    """The product of some axes, times `count`. A constant has no axes."""

    axes: tuple[str, ...]
    count: int


Polynomial = tuple[Monomial, ...]


def scaled_config(config: Mapping[str, Any], axes: Iterable[CandidateAxis], factors: Mapping[str, int]) -> Config:
    """Multiply the config keys of each axis by powers of its factor; integers stay integers where possible."""
    changed = dict(config)
    for axis in axes:
        factor = factors.get(axis.name, 1)
        if factor == 1:
            continue
        for key, power in axis.keys:
            changed[key] = scaled_value(changed[key], factor, power)
    return changed


def scaled_value(value: Any, factor: int, power: int) -> Any:
    """Return value * factor ** power; a list is scaled item by item, and only numbers change."""
    if isinstance(value, list):
        return [scaled_value(item, factor, power) for item in value]
    if value is None or isinstance(value, (bool, str)):
        return value
    if power > 0:
        return value * factor**power
    exact = value / factor**-power
    return int(exact) if isinstance(value, int) and exact.is_integer() else exact


class DoubledShapes:
    """Shapes on disk for any set of doubled axes. Each set is built once."""

    def __init__(self, architecture: Architecture, axes: Iterable[CandidateAxis]) -> None:
        self.architecture = architecture
        self.axes = tuple(axes)
        self.known: dict[frozenset[str], Shapes] = {}

    def shapes(self, doubled: frozenset[str] = frozenset()) -> Shapes:
        """Return the shape of every tensor on disk, by name.

        Raises:
            InferError: the architecture cannot be built with these axes doubled.
        """
        if doubled not in self.known:
            config = scaled_config(self.architecture.config, self.axes, dict.fromkeys(doubled, 2))
            try:
                self.known[doubled] = self.architecture.shapes(config)
            except Exception as error:  # architectures raise anything
                names = " and ".join(sorted(doubled))
                raise InferError(f"cannot double {names} together: {first_line(error)}", axes=doubled) from error
        return self.known[doubled]


def subsets(items: Iterable[str]) -> list[frozenset[str]]:
    """Return every subset, smaller ones first."""
    items = sorted(items)
    return [frozenset(some) for size in range(len(items) + 1) for some in itertools.combinations(items, size)]


def fit_polynomial(size: Callable[[frozenset[str]], int], axes: Iterable[str], units: Mapping[str, int]) -> Polynomial:
    """Express a size as a sum of products of axes.

    Let f(S) be the size with the axes in S doubled. A multilinear f is the sum over sets T of g(T) 2^|T n S|.
    Its finite difference over S is the sum of g(T) over all T that contain S. Inclusion and exclusion give g.

    Args:
        size: the function f.
        axes: the axes that the size depends on.
        units: the undoubled size of each axis.

    Raises:
        ValueError: the size is not a sum of such products with non-negative integer counts.
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

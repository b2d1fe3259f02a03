"""The coefficient and multiplicity of a tensor's parts as formulas in the axes' factors (page `theory`). No torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from mupscale_cli.architecture.layouts import AxisRef, Concatenation, Dim, Fixed, Layout, Power, Product
from mupscale_cli.architecture.patterns import NameAxis

COUNT = "="  # before an axis whose units have n copies, scaled by 1/sqrt(n)
RATIO = "#"  # before an axis, as in recipes: the ratio of its sizes
NORMS = "s"  # what makes up for norms that average over more units


@dataclass(frozen=True)
class Monomial:
    """A product of powers of copies and of size ratios: k(embed)^-1 R(d)^0.5.

    Attributes:
        powers: exponent of each axis's number of copies; of its size ratio, if `#` precedes the axis; and of `NORMS`.
    """

    powers: Mapping[str, Fraction]

    def __mul__(self, other: Monomial) -> Monomial:
        names = dict.fromkeys((*self.powers, *other.powers))
        return Monomial({name: self.powers.get(name, Fraction(0)) + other.powers.get(name, 0) for name in names})

    def __pow__(self, exponent: Fraction | int) -> Monomial:
        return Monomial({name: power * exponent for name, power in self.powers.items()})

    def without(self, names: Iterable[str]) -> Monomial:
        """Return the monomial with the factors of some axes set to 1."""
        dropped = frozenset(names)
        return Monomial({name: power for name, power in self.powers.items() if name not in dropped and power})

    def value(self, factors: Mapping[str, int | float | Fraction]) -> float:
        """Return its value; integer powers are multiplied exactly."""
        exact, inexact = Fraction(1), 1.0
        for name, power in self.powers.items():
            base = factors.get(name, factors.get(name.removeprefix(RATIO), 1))
            if power.denominator == 1 and not isinstance(base, float):
                exact *= Fraction(base) ** power.numerator
            else:
                inexact *= math.pow(base, power)
        return float(exact) * inexact

    def __str__(self) -> str:
        over = [_power_text(name, power) for name, power in self.powers.items() if power > 0]
        under = [_power_text(name, -power) for name, power in self.powers.items() if power < 0]
        text = " ".join(over) or "1"
        if not under:
            return text
        return f"{text} / {under[0] if len(under) == 1 else '(' + ' '.join(under) + ')'}"


def _power_text(name: str, power: Fraction) -> str:
    kinds = {RATIO: "R", COUNT: "n"}
    symbol = name if name == NORMS else f"{kinds.get(name[0], 'k')}({name.lstrip(RATIO + COUNT)})"
    return symbol + ("" if power == 1 else f"^{float(power):g}")


@dataclass(frozen=True)
class Part:
    """A part of a tensor whose elements have the same coefficient and multiplicity.

    Attributes:
        c: coefficient: each copy is c times the element.
        m: multiplicity: number of copies of an element.
        pieces: number of shares into which the layer's sums split an element.
    """

    c: Monomial
    m: Monomial
    pieces: Monomial

    def __mul__(self, other: Part) -> Part:
        return Part(self.c * other.c, self.m * other.m, self.pieces * other.pieces)

    def without(self, names: Sequence[str]) -> Part:
        return Part(self.c.without(names), self.m.without(names), self.pieces.without(names))

    @property
    def key(self) -> tuple[frozenset[tuple[str, Fraction]], ...]:
        return tuple(frozenset(each.powers.items()) for each in (self.c, self.m, self.pieces))


ONE = Part(Monomial({}), Monomial({}), Monomial({}))


def parts_of(layout: Layout, name_axes: Sequence[NameAxis] = ()) -> tuple[Part, ...]:
    """Return coefficient and multiplicity of each part of a tensor as formulas in the axes' factors (page `theory`).

    Args:
        layout: layout of the tensor.
        name_axes: axes in its name.

    Returns:
        The distinct parts, in the order of the layout.
    """
    whole = ONE
    for axis in name_axes:
        for name in axis.names:
            whole *= _along(name, contracted=axis.contracted)
    dims = [list(_parts(dim)) for dim in layout.dims]
    scale = Part(monomial_of(layout.powers), ONE.m, ONE.pieces)
    return distinct(math.prod(combination, start=whole * scale) for combination in itertools.product(*dims))


def distinct(parts: Iterable[Part]) -> tuple[Part, ...]:
    """Return the first of each set of parts with equal formulas, in order."""
    first: dict[object, Part] = {}
    for part in parts:
        first.setdefault(part.key, part)
    return tuple(first.values())


def _parts(dim: Dim) -> Iterator[Part]:
    match dim:
        case Fixed():
            yield ONE
        case AxisRef():
            yield _along(dim.name, contracted=dim.contracted and not dim.averaged)
        case Product():
            for combination in itertools.product(*map(list, map(_parts, dim.items))):
                yield math.prod(combination, start=ONE)
        case Concatenation():
            for segment in dim.segments:
                scale = Part(monomial_of(segment.powers), ONE.m, ONE.pieces)
                yield from (part * scale for part in _parts(segment.dim))


def _along(name: str, *, contracted: bool) -> Part:
    one = Monomial({name: Fraction(1)})
    return Part(one**-1, one, one) if contracted else Part(ONE.c, one, ONE.pieces)


def isometric(part: Part, name: str, *, is_gain: bool) -> Part:
    """Return a part in which n copies of an axis' units are 1/sqrt(n) times the unit, except for gains."""

    def renamed(monomial: Monomial) -> Monomial:
        powers = {f"{COUNT}{name}": power for axis, power in monomial.powers.items() if axis == name}
        return monomial.without([name]) * Monomial(powers)

    root = Fraction(0) if is_gain else -part.m.powers.get(name, Fraction(0)) / 2
    c = part.c.without([name]) * Monomial({f"{COUNT}{name}": root} if root else {})
    return Part(c, renamed(part.m), renamed(part.pieces))


def monomial_of(powers: Iterable[Power]) -> Monomial:
    """Return the product of a layout's or a segment's powers; those of sizes become powers of ratios."""
    named = ((f"{RATIO}{power.axis}" if power.of_size else power.axis, power.exponent) for power in powers)
    return math.prod((Monomial({name: exponent}) for name, exponent in named if exponent), start=Monomial({}))

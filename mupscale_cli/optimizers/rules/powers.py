"""Products of powers of what widening does to a tensor, to evaluate or to print. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields


@dataclass(frozen=True, slots=True)
class Ratios:
    """How many times as large the sides of a matrix become (dimensionless); 1 for tensors of fewer dimensions.

    Attributes:
        r: the smaller side.
        k_out: the rows.
        k_in: the columns.
    """

    r: float = 1.0
    k_out: float = 1.0
    k_in: float = 1.0

    @classmethod
    def of(cls, shape: Sequence[int], wide_shape: Sequence[int]) -> Ratios:
        """Return the ratios of a tensor, whose last two dimensions are rows and columns."""
        if len(shape) < 2 or 0 in (*shape, *wide_shape):
            return cls()
        (rows, columns), (wide_rows, wide_columns) = shape[-2:], wide_shape[-2:]
        return cls(min(wide_rows, wide_columns) / min(rows, columns), wide_rows / rows, wide_columns / columns)


UNCHANGED = Ratios()
SYMBOLS = {  # what formulas contain
    "c": "coefficient, the factor of the weights",
    "m": "multiplicity, the copies of each weight",
    "r": "growth of a matrix's smaller side",
    "k_out": "growth of the number of its rows",
    "k_in": "growth of the number of its columns",
    "shape factor": "the optimizer's own factor for the shape of a matrix, wide over narrow",
    "factor of lr": "wide lr / narrow lr",
}


@dataclass(frozen=True, slots=True)
class Powers:
    """A product of powers.

    Attributes:
        c: exponent of the coefficient.
        m: exponent of the multiplicity.
        r: exponent of the ratio of the smaller sides.
        k_out: exponent of the ratio of the numbers of rows.
        k_in: exponent of the ratio of the numbers of columns.
    """

    c: float = 0
    m: float = 0
    r: float = 0
    k_out: float = 0
    k_in: float = 0

    def __call__(self, c: float, m: float, ratios: Ratios = UNCHANGED) -> float:
        """Return the value for a coefficient, a multiplicity and the ratios of the sides (dimensionless)."""
        bases = (m, c, ratios.r, ratios.k_out, ratios.k_in)
        over, under = (
            [(base, max(sign * power, 0)) for base, power in zip(bases, self._exponents, strict=True)]
            for sign in (1, -1)
        )
        return _product(over) / _product(under)

    @property
    def _exponents(self) -> tuple[float, ...]:
        return self.m, self.c, self.r, self.k_out, self.k_in

    @property
    def inverse(self) -> Powers:
        return Powers(*(-power for power in astuple(self)))

    @property
    def is_one(self) -> bool:
        return not any(astuple(self))

    def __str__(self) -> str:
        over, under = self._sides()
        return (over or "1") + (f"/{_bracketed(under)}" if under else "")

    def times(self, value: str) -> str:
        """Format the product with a named value: `lr x c`, `eps / (m c)`."""
        over, under = self._sides()
        return value + (f" x {over}" if over else "") + (f" / {_bracketed(under)}" if under else "")

    def _sides(self) -> tuple[str, str]:
        names = ("m", "c", *(each.name for each in fields(Ratios)))
        powers = list(zip(names, self._exponents, strict=True))
        over = (_power_text(name, power) for name, power in powers if power > 0)
        return " ".join(over), " ".join(_power_text(name, -power) for name, power in powers if power < 0)


def _product(factors: Sequence[tuple[float, float]]) -> float:
    """Multiply powers, whole ones by multiplication in order, so factors that should cancel do."""
    result = 1.0
    for base, power in factors:
        for _ in range(int(power)):
            result *= base
        result *= math.pow(base, power % 1)
    return result


def _power_text(name: str, power: float) -> str:
    return {1: name, 0.5: f"sqrt({name})"}.get(power, f"{name}^{power:g}")


def _bracketed(text: str) -> str:
    return f"({text})" if " " in text else text


NORM_WEIGHT = Powers(c=2, m=1)  # weight of a tensor's squared gradient norm in the global norm
L2_DECAY = NORM_WEIGHT.inverse  # factor of wd in g += wd p
PER_GRADIENT = Powers(c=-1, m=-1)  # factor of a term that is added to a gradient's magnitude
PER_SQUARE = Powers(c=-2, m=-2)  # factor of a term that is added to a squared gradient

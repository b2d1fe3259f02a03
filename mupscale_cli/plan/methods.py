"""The methods of growing a network. No torch, no data.

A method is a subclass of `Method` and an entry of `METHODS`: where its copies lie, by what it shrinks the narrow
weights, which noise belongs to it, the options that it has, and what it promises.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from mupscale_cli.errors import PlanError
from mupscale_cli.plan.copies import Arrangement, Axis, CopyMap, drawn_map, padded_map
from mupscale_cli.plan.perturbation import Perturbation
from mupscale_cli.text import suggest

DEFAULT_SHRINK = 0.4  # that of arXiv 2411.07340; for few steps more is kept by 1 (tests/experiments/README.md)
# Relative to trained weights, which are larger than what they began with: half was better than all at every shrinkage
# in tests/experiments/README.md.
_FRESH = 0.5


@dataclass(frozen=True)
class Method(Arrangement):
    """How a network grows. The fields of a subclass are the options of its method.

    Attributes:
        name: its key in `METHODS`.
        is_copying: whether every new unit copies an old one, so that the unperturbed function is the narrow model's.
        draws_unevenly: whether its maps copy some units more often than others, where the architecture allows it.
        recorded: the options that mupscale.json notes; the method is made from them again to verify.
        seed: of random copy maps and of the method's own noise.
    """

    name: ClassVar[str]
    is_copying: ClassVar[bool] = True
    draws_unevenly: ClassVar[bool] = False
    recorded: ClassVar[tuple[str, ...]] = ()
    seed: int = 0

    @property
    def shrink(self) -> float:
        """By what matrices of the narrow model are multiplied (dimensionless)."""
        return 1.0

    @property
    def perturbation(self) -> Perturbation | None:
        """The noise that belongs to the method, where the user asked for no other."""
        return None

    def trains_alike(self, axes: Iterable[Axis]) -> bool:
        """Whether the unperturbed wide model takes the steps that the narrow one would take."""
        is_uneven = self.draws_unevenly and any(axis.uneven and axis.factor > 1 for axis in axes)
        return self.is_copying and not is_uneven

    def as_record(self) -> dict[str, Any]:
        """What mupscale.json says of it."""
        return {"name": self.name, **{option: getattr(self, option) for option in self.recorded}}


@dataclass(frozen=True)
class Mupscale(Method):
    """Copies side by side; function and training are those of the narrow model (arXiv 2602.10545)."""

    name = "mupscale"


@dataclass(frozen=True)
class Net2Net(Method):
    """Copies of units drawn at random; the function is that of the narrow model (arXiv 1511.05641)."""

    name = "net2net"
    draws_unevenly = True
    recorded = ("seed",)

    def copy_map(self, axis: Axis, size: int) -> CopyMap:
        return drawn_map(axis, size, self.seed)


@dataclass(frozen=True)
class HyperClone(Method):
    """Copies end to end, with noise that cancels if asked for (arXiv 2409.12903).

    Attributes:
        snr: ratio of signal to noise in dB: 10 log10 of mean squares of weight and noise; None for no noise.
    """

    name = "hyperclone"
    snr: float | None = None

    def __post_init__(self) -> None:
        if self.snr is not None and not math.isfinite(self.snr):
            raise PlanError(f"`--snr` is {self.snr}; it is a number of dB, for instance 20")
        _ = self.perturbation  # which refuses a size that is a slip

    @property
    def perturbation(self) -> Perturbation | None:
        return None if self.snr is None else Perturbation(10 ** (-self.snr / 20), "preserving", "rms", self.seed)

    def copy_map(self, axis: Axis, size: int) -> CopyMap:
        return CopyMap(size, axis.factor, "tiled")


@dataclass(frozen=True)
class WarmStart(Method):
    """Narrow weights shrunk and padded with fresh units; another function (arXiv 2411.07340).

    Attributes:
        shrink: by what the narrow weights are multiplied, from 0 to 1.
    """

    name = "warmstart"
    is_copying = False
    recorded = ("shrink",)
    shrink: float = DEFAULT_SHRINK

    def __post_init__(self) -> None:
        if not 0 <= self.shrink <= 1:
            raise PlanError(f"`--shrink` is {self.shrink}; it is a number from 0 to 1")

    @property
    def perturbation(self) -> Perturbation | None:
        return Perturbation(_FRESH, "free", "init", self.seed)

    def copy_map(self, axis: Axis, size: int) -> CopyMap:
        return padded_map(size, axis.factor)


METHODS: dict[str, type[Method]] = {method.name: method for method in (Mupscale, Net2Net, HyperClone, WarmStart)}
MUPSCALE = Mupscale()


def make_method(name: str, *, seed: int = 0, **options: float | None) -> Method:
    """Make a method by its name.

    Args:
        name: a key of `METHODS`.
        seed: of random copy maps and of the method's own noise.
        options: of single methods, such as `shrink`; None where one is not given.

    Raises:
        PlanError: there is no such method, or an option does not belong to it.
    """
    if name not in METHODS:
        raise PlanError(f"there is no method `{name}`", hint=suggest(name, METHODS) or f"known: {', '.join(METHODS)}")
    given = {option: value for option, value in options.items() if value is not None}
    for option in given.keys() - _options(METHODS[name]):
        owners = ", ".join(other for other, method in METHODS.items() if option in _options(method))
        raise PlanError(f"`--{option}` belongs to `--method {owners}`, not to `{name}`")
    return METHODS[name](seed=seed, **given)


def _options(method: type[Method]) -> set[str]:
    return {field.name for field in fields(method)}


def perturbation_of(method: Method, asked: Perturbation | None) -> Perturbation | None:
    """The noise of a widening: what was asked for, else what belongs to the method; None where there is none.

    Raises:
        PlanError: what was asked for cannot be had with the method.
    """
    if asked is not None and asked.mode == "preserving" and not method.is_copying:
        raise PlanError(
            f"`--noise-mode preserving` is not possible with `--method {method.name}`",
            hint="its new units copy none, so there is nothing over whose copies noise could cancel",
        )
    chosen = asked or method.perturbation
    return chosen if chosen is not None and chosen.size > 0 else None

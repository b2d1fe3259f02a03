"""Methods of growing a network. Does not import torch or read data.

A method is a subclass of `Method` and an entry of `METHODS`. It defines copy maps, a factor that shrinks the narrow
weights, the method's own noise, its options, and whether function and training are kept.
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

FRESH = ("init", "zero")
SPREADS = ("padded", "balanced")
DEFAULT_SHRINK = 0.4  # of arXiv 2411.07340; if there are few steps, 1 is better (tests/experiments/README.md)
# Relative to trained weights, which are larger than initial ones: 0.5 was better than 1 for every shrink factor in
# tests/experiments/README.md.
_FRESH_NOISE = 0.5


@dataclass(frozen=True)
class Method(Arrangement):
    """A method of growing. The fields of a subclass are the method's options.

    Attributes:
        name: key in `METHODS`.
        is_copying: whether new units copy old ones or stay out of the function, which is then kept, except for noise.
        adds_identity: whether a new block is the identity at first, so that a deeper stack keeps the function; else it
            computes what the block that it copies does.
        grows_to_any_size: whether its maps may have fresh units, for sizes that are not multiples.
        draws_unevenly: whether its maps copy some units more often than others if the architecture allows it.
        recorded: names of the options in mupscale.json, from which a verification makes the method again.
        seed: random seed of copy maps and of the method's own noise.
    """

    name: ClassVar[str]
    is_copying: ClassVar[bool] = True
    adds_identity: ClassVar[bool] = True
    grows_to_any_size: ClassVar[bool] = False
    draws_unevenly: ClassVar[bool] = False
    recorded: ClassVar[tuple[str, ...]] = ()
    seed: int = 0

    @property
    def shrink(self) -> float:
        """Factor of the narrow model's matrices (dimensionless)."""
        return 1.0

    @property
    def initializes(self) -> bool:
        """Whether weights that read fresh units, or make them, are initialized; otherwise they are 0."""
        return False

    @property
    def is_isometric(self) -> bool:
        """Whether residual streams grow isometrically (page `theory`, "Any size")."""
        return False

    @property
    def perturbation(self) -> Perturbation | None:
        """The method's own noise, which is used unless the user requests another."""
        return None

    def trains_alike(self, axes: Iterable[Axis]) -> bool:
        """Return whether the wide model without noise and initial weights takes the steps of the narrow one."""
        is_uneven = self.draws_unevenly and any(axis.uneven and axis.factor > 1 for axis in axes)
        return self.is_copying and not is_uneven

    def as_record(self) -> dict[str, Any]:
        """Return the object that mupscale.json contains."""
        return {"name": self.name, **{option: getattr(self, option) for option in self.recorded}}


@dataclass(frozen=True)
class Mupscale(Method):
    """Puts the copies of a unit side by side; keeps function and training (arXiv 2602.10545).

    Sizes that are not multiples end with fresh units, which stay out of the function.

    Attributes:
        fresh: what the weights are whose values cannot change the function, a key of `FRESH`: `init` for initial
            weights, so that the new width learns at once; `zero` so that training stays the same as well.
        spread: how residual streams grow, a key of `SPREADS`: `padded` to whole copies and fresh units; `balanced` to
            copies only. Some units then have one copy more than others, and scales let SGD and Muon keep their rates.
    """

    name = "mupscale"
    grows_to_any_size = True
    recorded = ("fresh", "spread", "seed")
    fresh: str = "init"
    spread: str = "padded"

    def __post_init__(self) -> None:
        for option, value, known in (("fresh", self.fresh, FRESH), ("spread", self.spread, SPREADS)):
            if value not in known:
                raise PlanError(f"unknown `--{option} {value}`", hint=f"known: {', '.join(known)}")

    @property
    def is_isometric(self) -> bool:
        return self.spread == "balanced"

    @property
    def initializes(self) -> bool:
        return self.fresh == "init"


@dataclass(frozen=True)
class Net2Net(Method):
    """Draws the units to copy at random; keeps the function (arXiv 1511.05641)."""

    name = "net2net"
    draws_unevenly = True
    recorded = ("seed",)

    def copy_map(self, axis: Axis, size: int) -> CopyMap:
        return drawn_map(axis, size, self.seed)


@dataclass(frozen=True)
class HyperClone(Method):
    """Repeats all units of an axis end to end; noise is optional and cancels in the function (arXiv 2409.12903).

    Attributes:
        snr: signal-to-noise ratio in dB, 10 log10(mean square of the weight / mean square of the noise); None for
            no noise.
    """

    name = "hyperclone"
    snr: float | None = None

    def __post_init__(self) -> None:
        if self.snr is not None and not math.isfinite(self.snr):
            raise PlanError(f"`--snr` is {self.snr}, expected a number of dB such as 20")
        _ = self.perturbation  # raises an error if the noise is too large

    @property
    def perturbation(self) -> Perturbation | None:
        return None if self.snr is None else Perturbation(10 ** (-self.snr / 20), "preserving", "rms", self.seed)

    def copy_map(self, axis: Axis, size: int) -> CopyMap:
        return CopyMap(size, axis.factor, "tiled")


@dataclass(frozen=True)
class WarmStart(Method):
    """Shrinks the narrow weights and adds fresh units; does not keep the function (arXiv 2411.07340).

    Attributes:
        shrink: factor of the narrow weights, from 0 to 1.
    """

    name = "warmstart"
    is_copying = False
    recorded = ("shrink",)
    shrink: float = DEFAULT_SHRINK

    def __post_init__(self) -> None:
        if not 0 <= self.shrink <= 1:
            raise PlanError(f"`--shrink` is {self.shrink}, expected a number from 0 to 1")

    @property
    def perturbation(self) -> Perturbation | None:
        return Perturbation(_FRESH_NOISE, "free", "init", self.seed)

    def copy_map(self, axis: Axis, size: int) -> CopyMap:
        return padded_map(size, axis.factor)


@dataclass(frozen=True)
class Stack(Mupscale):
    """Repeats the blocks of a stack as they are; keeps the function in width, but not in depth (arXiv 2405.15319)."""

    name = "stack"
    adds_identity = False


METHODS: dict[str, type[Method]] = {method.name: method for method in (Mupscale, Net2Net, HyperClone, WarmStart, Stack)}
MUPSCALE = Mupscale()


def make_method(name: str, *, seed: int = 0, **options: float | str | None) -> Method:
    """Make a method by its name.

    Args:
        name: a key of `METHODS`.
        seed: random seed of copy maps and of the method's own noise.
        options: options of single methods, such as `shrink`; None is the same as omitting the option.

    Raises:
        PlanError: the method is unknown, or an option is invalid or belongs to another method.
    """
    if name not in METHODS:
        raise PlanError(f"unknown method `{name}`", hint=suggest(name, METHODS) or f"known: {', '.join(METHODS)}")
    given = {option: value for option, value in options.items() if value is not None}
    for option in given.keys() - _options(METHODS[name]):
        owners = ", ".join(other for other, method in METHODS.items() if option in _options(method))
        raise PlanError(f"`--{option}` works only with `--method {owners}`, not with `{name}`")
    return METHODS[name](seed=seed, **given)


def _options(method: type[Method]) -> set[str]:
    return {field.name for field in fields(method)}


def choose_perturbation(method: Method, requested: Perturbation | None) -> Perturbation | None:
    """Return the requested noise, else the method's own; None for no noise.

    Raises:
        PlanError: the method does not support the requested noise.
    """
    if requested is not None and requested.mode == "preserving" and not method.is_copying:
        raise PlanError(
            f"`--noise-mode preserving` does not work with `--method {method.name}`, "
            "whose new units are not copies over which noise could cancel",
            hint="use `--noise-mode free`",
        )
    chosen = requested or method.perturbation
    return chosen if chosen is not None and chosen.size > 0 else None

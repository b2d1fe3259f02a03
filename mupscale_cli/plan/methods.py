"""The methods of growing a network, each a copy map, a shrinkage and a perturbation. No torch, no data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from mupscale_cli.errors import PlanError
from mupscale_cli.plan.copies import INTERLEAVED, Arrangement
from mupscale_cli.plan.perturbation import Perturbation
from mupscale_cli.text import suggest

DEFAULT_SHRINK = 0.4  # that of arXiv 2411.07340; for few steps more is kept by 1 (tests/experiments/README.md)
# Relative to trained weights, which are larger than what they began with: half was better than all at every shrinkage
# in tests/experiments/README.md.
_FRESH = 0.5
METHODS = {
    "mupscale": "copies side by side, the function and its training are those of the narrow model (arXiv 2602.10545)",
    "net2net": "copies of units drawn at random, the function is that of the narrow model (arXiv 1511.05641)",
    "hyperclone": "copies end to end, with noise that cancels if asked for (arXiv 2409.12903)",
    "warmstart": "narrow weights shrunk and padded with fresh units; another function (arXiv 2411.07340)",
}


@dataclass(frozen=True, slots=True)
class Method:
    """How a network grows.

    Attributes:
        name: a key of `METHODS`.
        arrangement: how the copies are laid out.
        shrink: by what matrices of the narrow model are multiplied (dimensionless).
        perturbation: the noise that belongs to it, where the user asked for no other.
    """

    name: str = "mupscale"
    arrangement: Arrangement = INTERLEAVED
    shrink: float = 1.0
    perturbation: Perturbation | None = None

    @property
    def is_copying(self) -> bool:
        """Whether every new unit copies an old one, so that the unperturbed function is the narrow model's."""
        return self.arrangement.kind != "padded"

    def as_record(self) -> dict[str, Any]:
        """What mupscale.json says of it."""
        seed = {"seed": self.arrangement.seed} if self.arrangement.kind == "random" else {}
        shrink = {} if self.is_copying else {"shrink": self.shrink}
        return {"name": self.name, **seed, **shrink}


MUPSCALE = Method()


def make_method(name: str, *, seed: int = 0, shrink: float | None = None, snr: float | None = None) -> Method:
    """A method by its name.

    Args:
        name: a key of `METHODS`.
        seed: of random copy maps and of the method's own noise.
        shrink: for `warmstart`, by what the narrow weights are multiplied.
        snr: for `hyperclone`, the ratio of signal to noise in dB: 10 log10 of mean squares of weight and noise.

    Raises:
        PlanError: there is no such method, or an option does not belong to it.
    """
    if name not in METHODS:
        raise PlanError(f"there is no method `{name}`", hint=suggest(name, METHODS) or f"known: {', '.join(METHODS)}")
    for option, value, owner in (("--shrink", shrink, "warmstart"), ("--snr", snr, "hyperclone")):
        if value is not None and name != owner:
            raise PlanError(f"`{option}` belongs to `--method {owner}`, not to `{name}`")
    if name == "net2net":
        return Method(name, Arrangement("random", seed))
    if name == "hyperclone":
        return Method(name, Arrangement("tiled"), perturbation=_cancelling(snr, seed))
    if name == "warmstart":
        factor = DEFAULT_SHRINK if shrink is None else shrink
        if not 0 <= factor <= 1:
            raise PlanError(f"`--shrink` is {factor}; it is a number from 0 to 1")
        return Method(name, Arrangement("padded"), factor, Perturbation(_FRESH, "free", "init", seed))
    return MUPSCALE


def _cancelling(snr: float | None, seed: int) -> Perturbation | None:
    if snr is None:
        return None
    if not math.isfinite(snr):
        raise PlanError(f"`--snr` is {snr}; it is a number of dB, for instance 20")
    return Perturbation(10 ** (-snr / 20), "preserving", "rms", seed)


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

"""Noise that makes copies differ. Does not import torch or read data.

Exact copies have equal gradients and never diverge, so the new capacity would remain unused. Noise of size `t` relative
to each tensor breaks this symmetry (page `noise`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from mupscale_cli.errors import PlanError

Mode = Literal["free", "preserving", "mixed"]
Scale = Literal["spectral", "rms", "fan-in", "init", "paper", "elementwise"]
Norm = Literal["spectral", "rms"]
MODES: tuple[Mode, ...] = ("free", "preserving", "mixed")
SCALES: tuple[Scale, ...] = ("spectral", "rms", "fan-in", "init", "paper", "elementwise")


_MAX_SIZE = 1000  # relative to the weights; a larger number is a mistake


@dataclass(frozen=True, slots=True)
class Perturbation:
    """Noise to add to a widened model: W'' = W' + t s Z, see page `noise`.

    Attributes:
        size: t, relative to each tensor (dimensionless); one number suits all tensors and transfers across widths.
        mode: `free` adds the noise unchanged; `preserving` centers it over the copies that a layer sums, so the
            function stays the same but the gradients of copies differ. `mixed` keeps the norm of the sum:
            W'' = sqrt(1 - t) W' + sqrt(t) s Z.
        scale: definition of s. With `spectral`, the noise of a matrix has t times its spectral norm; with `rms`, t
            times its root mean square; with `elementwise`, t times the absolute value of each element. With `fan-in`,
            t s = t / sqrt(fan_in). With `init`, t s is t times the root mean square of the narrow tensor, scaled to
            the new width as muP scales initial weights. `paper` is the noise of the scripts of arXiv 2602.10545:
            t s = t / (k sqrt(fan_in)), with the factor k of the layer's inputs; none for readouts.
        seed: random seed; the same seed gives the same noise.
        on: patterns of the names of tensors that get noise (`*` stands for any text); empty for all.
    """

    size: float
    mode: Mode = "free"
    scale: Scale = "spectral"
    seed: int = 0
    on: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.size <= _MAX_SIZE:
            raise PlanError(
                f"the size of the noise is {self.size:g}, expected a number from 0 to {_MAX_SIZE} such as 0.1"
            )
        for option, value, known in (("mode", self.mode, MODES), ("scale", self.scale, SCALES)):
            if value not in known:
                raise PlanError(f"unknown `--noise-{option} {value}`", hint=f"known: {', '.join(known)}")
        if self.mode == "mixed" and self.size > 1:
            raise PlanError(
                f"the size of the noise is {self.size:g}, but `--noise-mode mixed` gives the weights the share 1 - T",
                hint="use a T from 0 to 1",
            )

    @property
    def share(self) -> float:
        """Factor of the weights, 1 unless noise takes part of their norm."""
        return math.sqrt(1 - self.size) if self.mode == "mixed" else 1.0

    @property
    def amplitude(self) -> float:
        """Factor of s Z: t, or its root if it is the share of a squared norm."""
        return math.sqrt(self.size) if self.mode == "mixed" else self.size

    @property
    def is_relative(self) -> bool:
        """Whether the noise is relative to each element rather than to a tensor."""
        return self.scale == "elementwise"

    def covers(self, name: str, prefixes: Iterable[str]) -> bool:
        """Return whether a tensor gets noise.

        Args:
            name: its name without optional prefixes.
            prefixes: the prefixes that it may have; a pattern may include one of them.
        """
        names = (name, *(prefix + name for prefix in prefixes))
        return not self.on or any(fnmatchcase(known, pattern) for known in names for pattern in self.on)

    @property
    def options(self) -> list[str]:
        """The options of `mupscale widen` that make this noise with the default method, without `--seed`."""
        words = ["--noise", f"{self.size:.12g}"]
        words += ["--noise-mode", self.mode] if self.mode != "free" else []
        words += ["--noise-scale", self.scale] if self.scale != "spectral" else []
        return words + [word for pattern in self.on for word in ("--noise-on", pattern)]

    def as_record(self) -> dict[str, Any]:
        """Return the object that mupscale.json contains."""
        return {"size": self.size, "mode": self.mode, "scale": self.scale, "seed": self.seed, "on": list(self.on)}


@dataclass(frozen=True, slots=True)
class Init:
    """Initial weights of the fresh elements of a tensor.

    Attributes:
        seed: random seed.
        name: name of the wide tensor without optional prefixes; it seeds the weights together with the seed.
        size: their standard deviation divided by the root mean square of the narrow tensor. As in muP, it shrinks with
            the square root of the fan-in, that of a readout with the fan-in.
        std: their standard deviation, once it is measured.
    """

    seed: int
    name: str
    size: float
    std: float | None = None


@dataclass(frozen=True, slots=True)
class Noise:
    """Noise of one tensor.

    Attributes:
        perturbation: size, mode and scale of the noise.
        name: name of the wide tensor without optional prefixes; it seeds the noise together with the seed.
        shape: shape of the wide tensor.
        is_matrix: whether two or more dimensions grow; otherwise it scales like a vector (embeddings, readouts).
        fan_in: number of wide elements that each output of the layer sums.
        coefficient: c of the tensor.
        num_shares: number of copies over which the layer's sum is split.
        std: standard deviation t s, once it is measured; relative to each element with the scale `elementwise`.
    """

    perturbation: Perturbation
    name: str
    shape: tuple[int, ...]
    is_matrix: bool
    fan_in: int
    coefficient: float
    num_shares: int
    std: float | None = None

    @property
    def norm(self) -> Norm | None:
        """The norm of the wide tensor that determines the size of the noise; None if there is none."""
        scale = self.perturbation.scale
        if scale in ("fan-in", "paper", "elementwise"):
            return None
        return "spectral" if scale == "spectral" and self.is_matrix else "rms"

    def std_for(self, norm: float) -> float:
        """Return the standard deviation of the noise, t s, in units of the tensor's elements.

        A Gaussian matrix of standard deviation s has a spectral norm of about s (sqrt(rows) + sqrt(columns))
        (Davidson & Szarek 2001, theorem II.13). With `spectral`, this is t times the weight's spectral norm.

        Args:
            norm: value of the norm that `self.norm` names; ignored if it is None.
        """
        size, scale = self.perturbation.amplitude, self.perturbation.scale
        if self.perturbation.is_relative:
            return size
        if scale == "paper":
            # The scripts add noise to the copies before they divide both by the number of shares.
            return size / (self.num_shares * math.sqrt(self.fan_in))
        if scale == "fan-in":
            # If a readout's 1/k is in its weights, muP's multiplier is folded into them.
            return size / math.sqrt(self.fan_in) * (1.0 if self.is_matrix else abs(self.coefficient))
        if self.norm == "spectral":
            rows = self.shape[0]
            return size * norm / (math.sqrt(rows) + math.sqrt(math.prod(self.shape) / rows))
        # Copying divides a matrix by its number of shares, muP's initialization by the square root of it.
        return size * norm * (math.sqrt(self.num_shares) if scale == "init" and self.is_matrix else 1.0)

"""What tells copies apart: how large the noise is, and which tensors get it. No torch, no data.

Exact copies have equal gradients and never separate, so the new capacity would stay unused. Noise of
size `t` relative to each tensor breaks the symmetry (design.md section 2, "Perturbation").
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from mupscale_cli.errors import PlanError

Mode = Literal["free", "preserving"]
Scale = Literal["spectral", "rms", "fan-in", "init"]
Norm = Literal["spectral", "rms"]
MODES: tuple[Mode, ...] = ("free", "preserving")
SCALES: tuple[Scale, ...] = ("spectral", "rms", "fan-in", "init")


_LARGEST = 1000  # times the weights; what is larger is a slip


@dataclass(frozen=True, slots=True)
class Perturbation:
    """Noise that is added to a widened model: W'' = W' + t s Z.

    Attributes:
        size: t, relative to each tensor (dimensionless), so that one number serves all and transfers across widths.
        mode: `free` adds it as it is; `preserving` centres it over the copies of what a layer sums over, so that
            the function stays the same while gradients differ.
        scale: what s is: `spectral`, so that the noise of a matrix has t times its spectral norm; `rms`, t times its
            root mean square; `fan-in`, t / sqrt(fan_in) (arXiv 2602.10545); `init`, t times the root mean square of
            the narrow tensor as muP carries an initialisation to the new width.
        seed: of the noise; the same seed gives the same noise.
    """

    size: float
    mode: Mode = "free"
    scale: Scale = "spectral"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.size <= _LARGEST:
            raise PlanError(f"the noise is {self.size:g}; its size is a number from 0 to {_LARGEST}, for instance 0.1")
        for option, value, known in (("mode", self.mode, MODES), ("scale", self.scale, SCALES)):
            if value not in known:
                raise PlanError(f"`--noise-{option} {value}` is not known", hint=f"known: {', '.join(known)}")

    def as_record(self) -> dict[str, Any]:
        """What mupscale.json says of it."""
        return {"size": self.size, "mode": self.mode, "scale": self.scale, "seed": self.seed}


@dataclass(frozen=True, slots=True)
class Noise:
    """The noise of one tensor.

    Attributes:
        perturbation: what was asked for.
        name: of the wide tensor without optional prefixes; the noise is a function of it and of the seed.
        shape: of the wide tensor.
        is_matrix: whether two or more of its dimensions grow; else it is like a vector (embeddings, readouts).
        fan_in: how many wide elements each output of the layer sums.
        coefficient: c of the tensor.
        num_shares: over how many copies of an input a layer's sum is split.
        std: t s, once it is known.
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
        """The norm of the wide tensor that its size depends on."""
        scale = self.perturbation.scale
        if scale == "fan-in":
            return None
        return "spectral" if scale == "spectral" and self.is_matrix else "rms"

    def std_for(self, norm: float) -> float:
        """The standard deviation of the noise, t s.

        A Gaussian matrix of standard deviation s has a spectral norm of about s (sqrt(rows) + sqrt(columns))
        (Davidson & Szarek 2001, theorem II.13), which for `spectral` is made t times that of the weight.

        Args:
            norm: the norm that `self.norm` names; any number where it names none.
        """
        size, scale = self.perturbation.size, self.perturbation.scale
        if scale == "fan-in":
            # A readout whose 1/k is in the weights is muP's with its multiplier folded in.
            return size / math.sqrt(self.fan_in) * (1.0 if self.is_matrix else abs(self.coefficient))
        if self.norm == "spectral":
            rows = self.shape[0]
            return size * norm / (math.sqrt(rows) + math.sqrt(math.prod(self.shape) / rows))
        # Copying divides a matrix by its shares, muP's initialisation by their root.
        return size * norm * (math.sqrt(self.num_shares) if scale == "init" and self.is_matrix else 1.0)

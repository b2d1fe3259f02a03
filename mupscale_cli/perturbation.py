"""What tells copies apart: how large the noise is, and which tensors get it. No torch, no data.

Exact copies have equal gradients and never separate, so the new capacity would stay unused. Noise of
size `t` relative to each tensor breaks the symmetry (design.md section 2, "Perturbation").
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from mupscale_cli.errors import PlanError

Mode = Literal["free", "preserving"]
Scale = Literal["spectral", "rms", "fan-in"]
MODES: tuple[Mode, ...] = ("free", "preserving")
SCALES: tuple[Scale, ...] = ("spectral", "rms", "fan-in")


@dataclass(frozen=True, slots=True)
class Perturbation:
    """Noise that is added to a widened model: W'' = W' + t s Z.

    Attributes:
        size: t, relative to each tensor (dimensionless), so that one number serves all and transfers across widths.
        mode: `free` adds it as it is; `preserving` centres it over the copies of what a layer sums over, so that
            the function stays the same while gradients differ.
        scale: what s is: `spectral`, so that the noise of a matrix has t times its spectral norm; `rms`, t times its
            root mean square; `fan-in`, t / sqrt(fan_in) (arXiv 2602.10545).
        seed: of the noise; the same seed gives the same noise.
    """

    size: float
    mode: Mode = "free"
    scale: Scale = "spectral"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.size < math.inf:
            raise PlanError(f"the noise is {self.size}; its size is a number of at least 0, for instance 0.1")
        for option, value, known in (("mode", self.mode, MODES), ("scale", self.scale, SCALES)):
            if value not in known:
                raise PlanError(f"`--noise-{option} {value}` is not known", hint=f"known: {', '.join(known)}")

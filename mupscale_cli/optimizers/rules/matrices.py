"""Optimizers of whole matrices. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from mupscale_cli.errors import PlanError
from mupscale_cli.optimizers.rules.powers import Powers
from mupscale_cli.optimizers.rules.rule import LINEAR, Entry, OptimizerRule
from mupscale_cli.text import suggest

# Factors of Muon's step by rows and columns of the matrix, under the names of torch and of Megatron Core.
_ORIGINAL: Callable[[float, float], float] = lambda rows, columns: math.sqrt(max(1.0, rows / columns))  # noqa: E731
MUON_FACTORS: Mapping[str, Callable[[float, float], float]] = {
    "original": _ORIGINAL,
    "match_rms_adamw": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),
    "shape_scaling": _ORIGINAL,
    "spectral": lambda rows, columns: math.sqrt(max(rows, columns)),
    "unit_rms_norm": lambda rows, columns: math.sqrt(rows / columns),
}


def muon_shape_factor(shape: tuple[int, ...], settings: Mapping[str, Any]) -> float:
    """Return the factor that Muon applies to the learning rate of a matrix, by `adjust_lr_fn` of its group.

    Raises:
        PlanError: the group names an unknown factor.
    """
    mode = settings.get("adjust_lr_fn") or "original"
    if mode not in MUON_FACTORS:
        raise PlanError(
            f"unknown `adjust_lr_fn` value `{mode}`",
            hint=suggest(str(mode), MUON_FACTORS) or f"known: {', '.join(MUON_FACTORS)}",
        )
    return MUON_FACTORS[mode](*shape[-2:])


def _side(number: int) -> Callable[[int], tuple[int, ...]]:
    """Return a function that says which dimensions Shampoo's matrix for one side of a parameter has."""

    def dims(count: int) -> tuple[int, ...]:
        if count > 2:
            raise PlanError(
                f"Shampoo's state of tensors with {count} dimensions cannot be carried over, only that of matrices and "
                "vectors",
                hint="omit the state with `--optimizer none`",
            )
        return (number, number)

    return dims


_SETTINGS = {"lr": 1e-3, "weight_decay": 0.1, "momentum": 0.95}
_ORTHOGONAL = Powers(c=1, m=0.5)  # orthogonalizing R(M) / (m c) gives R(orth(M)) / sqrt(m)

RULES = (
    OptimizerRule(
        title="Muon",
        state={"momentum_buffer": LINEAR},
        lr=_ORTHOGONAL,
        decoupled=True,
        settings={**_SETTINGS, "nesterov": True, "ns_steps": 5},
        marks=(frozenset({"ns_steps"}), frozenset({"momentum", "use_muon"})),
        class_names={"torch": "torch.optim.Muon"},
        exact="mupscale_cli.optimizers.exact.matrices.ExactMuon",
        matrices_only=True,
        shape_factor=muon_shape_factor,
        caveats=(
            "Muon's Newton-Schulz iteration runs in bfloat16, so weights agree to 1 or 2 percent after ten steps",
        ),
    ),
    OptimizerRule(
        title="NorMuon",
        # The second entry averages squares of the orthogonalized matrix, over rows or over columns.
        state={"momentum_buffer": LINEAR, "second_momentum_buffer": Entry(Powers(m=-1))},
        lr=_ORTHOGONAL,
        decoupled=True,
        settings={**_SETTINGS, "beta2": 0.95},
        marks=(frozenset({"momentum", "beta2"}), frozenset({"momentum", "beta2", "use_muon"})),
        exact="mupscale_cli.optimizers.exact.matrices.NorMuon",
        matrices_only=True,
        shape_factor=muon_shape_factor,
        caveats=("NorMuon's Newton-Schulz iteration is approximate, so steps agree only to its accuracy",),
    ),
    OptimizerRule(
        title="NorMuon+",
        # As NorMuon, but the orthogonalized matrix first gets the norm sqrt(min(rows, columns)): in a wide model, it is
        # sqrt(r) times as large as the copies of the narrow one.
        state={"momentum_buffer": LINEAR, "second_momentum_buffer": Entry(Powers(m=-1, r=1))},
        lr=Powers(c=1, m=0.5, r=-0.5),
        decoupled=True,
        settings={**_SETTINGS, "beta2": 0.95, "ns_steps": 5, "kind": "muon"},
        marks=(frozenset({"kind", "momentum", "beta2", "ns_steps"}),),  # nanochat
        exact="mupscale_cli.optimizers.exact.matrices.NorMuonPlus",
        matrices_only=True,
        shape_factor=muon_shape_factor,
        caveats=("NorMuon's iteration is approximate, so steps agree only to its accuracy",),
    ),
    OptimizerRule(
        title="Shampoo",
        # Sums over the other side, which is longer in a wide matrix. Each copied eigenvector has 1/(m c^2) of its
        # eigenvalue, and so has epsilon, which is added before the root.
        state={
            "precond_0": Entry(Powers(c=-2, m=-2, k_in=1), dims=_side(0)),
            "precond_1": Entry(Powers(c=-2, m=-2, k_out=1), dims=_side(1)),
        },
        lr=_ORTHOGONAL,
        decoupled=True,
        scaled={"epsilon": Powers(c=-2, m=-1)},
        settings={**_SETTINGS, "epsilon": 1e-4},
        implied={"precond_1": {}},
        marks=(frozenset({"epsilon", "precond_0"}),),
        exact="mupscale_cli.optimizers.exact.matrices.Shampoo",
        caveats=(
            "Shampoo is exact only for sums that started from zero",
            "Shampoo amplifies rounding: with an epsilon of 1e-12, a small net differs by 1e-9 after ten steps",
        ),
    ),
)

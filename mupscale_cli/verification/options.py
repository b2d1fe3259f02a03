"""What can be chosen when two models are compared. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class VerifyOptions:
    """How to verify.

    Attributes:
        dtype: `auto`, or a key of `dtypes.FLOATS`; `auto` is float64 where the models fit, else float32.
        device: `auto`, one of torch's names, `disk` or `spread`; see `placement.place`.
        model: `path/or/module.py:build` for an own model instead of transformers'.
        seed: of the random inputs.
        steps: optimizer steps to take on both models, beside comparing what they compute.
    """

    dtype: str = "auto"
    device: str = "auto"
    model: str | None = None
    seed: int = 0
    steps: int = 0

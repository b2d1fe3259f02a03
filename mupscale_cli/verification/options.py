"""The options of verifying, declared once for the Python API, the command line and job files. No torch."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mupscale_cli.record.types import VerifiedWith


@dataclass(frozen=True)
class VerifyOptions:
    """How to verify a widened checkpoint.

    Attributes:
        narrow: its source; the one that its record names if not given.
        dtype: `auto`, or one of `placement.DTYPES`; `auto` is float64 where the models fit, else float32.
        device: `auto`, one of torch's names, `disk` or `spread`; see `placement.place`.
        model: `path/or/module.py:build` of a user-defined model, in place of transformers'.
        recipe: name or file of the recipe; the one that the record names if not given.
        seed: of the random inputs.
        steps: optimizer steps to take on both models, beside comparing what they compute.
        optimizer: for `steps`, the narrow optimizer's state if it is not beside the source; `none` leaves it out.
        allow_pickle: read distributed checkpoints, whose metadata are a pickle.
    """

    narrow: str | Path | None = None
    _: KW_ONLY
    dtype: str = "auto"
    device: str = "auto"
    model: str | None = None
    recipe: str | Path | None = None
    seed: int = 0
    steps: int = 0
    optimizer: Path | None = None
    allow_pickle: bool = False

    def as_record(self) -> VerifiedWith:
        """Return what a record says of them; no paths."""
        return {
            "dtype": self.dtype,
            "device": self.device,
            "own_model": self.model is not None,
            "seed": self.seed,
            "steps": self.steps,
        }

"""Options of a verification, shared by the Python API, the command line and job files. Does not import torch."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mupscale_cli.record.types import VerifiedWith


@dataclass(frozen=True)
class VerifyOptions:
    """Options for verifying a widened checkpoint.

    Attributes:
        narrow: path of the source. Default: the source named in the record.
        dtype: `auto` or a key of `dtypes.FLOATS`; `auto` is float64 if the models fit in memory, else float32.
        device: `auto`, a torch device, `disk` or `spread`; see `placement.choose_placements`.
        model: `path/or/module.py:build` of a user-defined model that replaces the transformers class.
        recipe: name or file of the recipe. Default: the recipe named in the record.
        seed: random seed of the inputs.
        steps: number of optimizer steps to train both models for, in addition to comparing their outputs.
        optimizer: state file of the narrow optimizer, used by `steps`; `none` ignores any state. Default: the
            state next to the source.
        allow_pickle: read distributed checkpoints, whose metadata is a pickle.
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
        """Return the options that a record keeps; it has no paths."""
        return {
            "dtype": self.dtype,
            "device": self.device,
            "own_model": self.model is not None,
            "seed": self.seed,
            "steps": self.steps,
        }

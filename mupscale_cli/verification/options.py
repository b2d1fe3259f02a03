"""Options of a verification, shared by the Python API, the command line and job files. Does not import torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mupscale_cli.dtypes import FLOATS
from mupscale_cli.errors import VerifyError

if TYPE_CHECKING:
    from mupscale_cli.record.types import VerifiedWith

PARTS = {
    "function": "run both models and compare what they compute",
    "weights": "every element against source and rule",
    "config": "config.json against the plan, every key",
    "files": "all other files, and the optimizer state, against source and rule",
}


@dataclass(frozen=True)
class VerifyOptions:
    """Options for verifying a widened checkpoint.

    Attributes:
        narrow: path of the source. Default: the source named in the record.
        only: parts to verify, keys of `PARTS`. Default: all.
        dtype: `auto` or a key of `dtypes.FLOATS`; `auto` is float64 if the models fit in memory, else float32.
        device: `auto` or a torch device; see `placement.choose_placement`.
        model: `path/or/module.py:build` of a user-defined model that replaces the transformers class.
        recipe: name or file of the recipe. Default: the recipe named in the record.
        seed: random seed of the inputs.
        steps: number of optimizer steps to train both models for, in addition to comparing their outputs.
        optimizer: state file of the narrow optimizer; `none` ignores any state. Default: the state next to the
            source.

    Raises:
        VerifyError: a part or a data type is unknown.
    """

    narrow: str | Path | None = None
    _: KW_ONLY
    only: Sequence[str] = ()
    dtype: str = "auto"
    device: str = "auto"
    model: str | None = None
    recipe: str | Path | None = None
    seed: int = 0
    steps: int = 0
    optimizer: Path | None = None

    def __post_init__(self) -> None:
        if unknown := next((part for part in self.only if part not in PARTS), None):
            raise VerifyError(f"unknown part `{unknown}`", hint=f"known: {', '.join(PARTS)}")
        if self.dtype not in ("auto", *FLOATS):
            raise VerifyError(f"unknown data type `{self.dtype}`", hint=f"known: auto, {', '.join(FLOATS)}")

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts to verify, in the order of `PARTS`."""
        return tuple(part for part in PARTS if part in self.only) if self.only else tuple(PARTS)

    @property
    def reads_state(self) -> bool:
        """Whether the optimizer state takes part."""
        return "files" in self.parts or self.steps > 0

    def as_record(self) -> VerifiedWith:
        """Return the options that a record keeps; it has no paths."""
        return {
            "only": list(self.parts) if self.only else [],
            "dtype": self.dtype,
            "device": self.device,
            "own_model": self.model is not None,
            "seed": self.seed,
            "steps": self.steps,
        }

"""Represent numbers in JSON documents."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from mupscale_cli.record.types import Figure


def figure(value: float) -> Figure:
    """Return a finite number unchanged; return others, which JSON lacks, as text: `inf`, `-inf` or `nan`."""
    return value if math.isfinite(value) else cast("Figure", str(value))

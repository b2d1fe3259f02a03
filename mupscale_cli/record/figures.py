"""Numbers as documents have them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from mupscale_cli.record.types import Figure


def figure(value: float) -> Figure:
    """Return a number, or its name where JSON has none for it: `inf`, `-inf`, `nan`."""
    return value if math.isfinite(value) else cast("Figure", str(value))

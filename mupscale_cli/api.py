"""Widen a trained network without retraining it.

The build installs this module a second time, as the package `mupscale`: what `pip install mupscale` and the command are
called. Both names give the same objects.

>>> import mupscale
>>> plan = mupscale.plan_widening("tiny", factor=2)      # doctest: +SKIP
>>> widened = mupscale.widen("tiny", factor=2)           # doctest: +SKIP
>>> mupscale.verify(widened.output).agrees               # doctest: +SKIP
True
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mupscale_cli
from mupscale_cli import __all__

if TYPE_CHECKING:
    from mupscale_cli import *  # noqa: F403 (type checkers see the same names)


def __getattr__(name: str) -> Any:
    """Import a name of the API when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
    return getattr(mupscale_cli, name)


def __dir__() -> list[str]:
    return __all__

"""The library that has the reference implementations of most architectures; it is an extra."""

from __future__ import annotations

import importlib
import logging
from typing import Any

from mupscale_cli.errors import MupscaleError


def import_transformers(missing: MupscaleError | None = None) -> Any:
    """Import transformers without its warnings and progress bars.

    Args:
        missing: what to raise where it is not installed; an error that names the extra if not given.

    Raises:
        MupscaleError: it is not installed.
    """
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise missing or MupscaleError("transformers is not installed", hint="`pip install 'mupscale[hf]'`") from error
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)  # it tells what was asked for
    return transformers

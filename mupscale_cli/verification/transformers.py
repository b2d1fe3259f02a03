"""Importing transformers, the optional library with reference implementations of most architectures."""

from __future__ import annotations

import importlib
import logging
from typing import Any

from mupscale_cli.errors import MupscaleError, install_extra


def import_transformers(missing: MupscaleError | None = None) -> Any:
    """Import transformers and silence its warnings and progress bars.

    Args:
        missing: error to raise if transformers is not installed. Default: one that names the extra.

    Raises:
        MupscaleError: transformers is not installed.
    """
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise missing or MupscaleError("transformers is not installed", hint=install_extra("hf")) from error
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)  # it logs every device map that it was given
    return transformers

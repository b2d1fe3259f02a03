"""Progress bars of the Hub's client."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def progress_bars(*, shown: bool) -> Iterator[None]:
    """Show or hide the client's progress bars inside the context; HF_HUB_DISABLE_PROGRESS_BARS takes precedence."""
    from huggingface_hub import constants, utils

    if shown or constants.HF_HUB_DISABLE_PROGRESS_BARS is not None:
        yield
        return
    utils.disable_progress_bars()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        utils.enable_progress_bars()  # type: ignore[attr-defined]

"""The progress bars of the Hub's client."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def progress_bars(*, shown: bool) -> Iterator[None]:
    """Let the client show its progress bars or not; what the user's environment says of them goes before."""
    from huggingface_hub import constants, utils

    if shown or constants.HF_HUB_DISABLE_PROGRESS_BARS is not None:
        yield
        return
    utils.disable_progress_bars()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        utils.enable_progress_bars()  # type: ignore[attr-defined]

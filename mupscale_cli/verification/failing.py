"""Errors of the models that are compared, as errors that a user can read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mupscale_cli.errors import VerifyError


@contextmanager
def running_a_model() -> Iterator[None]:
    """Turn what a model's own code raises inside the context into one message.

    Raises:
        VerifyError: the model failed.
    """
    try:
        yield
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError) as error:
        raise VerifyError(f"the model failed to run: {error}") from error

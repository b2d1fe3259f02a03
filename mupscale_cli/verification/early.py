"""Refuse a verification that cannot start, before anything is written."""

from __future__ import annotations

from mupscale_cli.verification.options import VerifyOptions


def require_startable(options: VerifyOptions) -> None:
    """Check that the device exists and that the user's model class can be imported. The usual ones cost no import.

    Raises:
        VerifyError: the device cannot be used, or there is no such function.
    """
    if options.device not in ("auto", "cpu"):
        from mupscale_cli.verification.placement import choose_device  # imports torch

        choose_device(options.device)
    if options.model is not None:
        from mupscale_cli.verification.user_models import load_user_module  # imports torch

        load_user_module(options.model)

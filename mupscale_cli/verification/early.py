"""Refuse a verification that cannot start or is bound to fail, before anything is written."""

from __future__ import annotations

from importlib.util import find_spec

from mupscale_cli.checkpoints.reading import Checkpoint
from mupscale_cli.engine.events import SILENT, Events
from mupscale_cli.plan import Plan
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


def require_fitting(narrow: Checkpoint, plan: Plan, options: VerifyOptions, events: Events = SILENT) -> bool:
    """Check that the class that verification will load accepts the wide config and has the planned tensors.

    Imports torch and the class's library, as verification does, unless there is none to import.

    Args:
        narrow: the source.
        plan: plan of its widening.
        options: the user-defined model, if any.
        events: receive the progress.

    Returns:
        Whether the class fits; False if that is unknown.

    Raises:
        PlanError: the class refuses the wide config, or has other tensors.
        VerifyError: the source does not fit its class.
    """
    if options.model is None and (narrow.config is None or find_spec(narrow.library.name) is None):
        return False
    events.phase("building the class without data", 0)
    from mupscale_cli.engine.threads import one_thread  # imports torch
    from mupscale_cli.verification import fitting

    with one_thread():  # threads of torch would still exist when `widen` forks
        return fitting.require_fitting(narrow, plan, options)

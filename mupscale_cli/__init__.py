"""Widen a trained network without retraining it.

>>> import mupscale_cli as mupscale
>>> plan = mupscale.plan_widening("tiny", factor=2)      # doctest: +SKIP
>>> widened = mupscale.widen("tiny", factor=2)           # doctest: +SKIP
>>> mupscale.verify(widened.output).agrees               # doctest: +SKIP
True
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mupscale_cli._version import __version__

if TYPE_CHECKING:
    from mupscale_cli.errors import MupscaleError
    from mupscale_cli.handoff import clip_grad_norm_, param_groups
    from mupscale_cli.jobs import JobPlan, PushStep, VerifyStep, WidenStep, plan_job, run_job
    from mupscale_cli.methods import make_method
    from mupscale_cli.perturbation import Perturbation
    from mupscale_cli.plan import Plan
    from mupscale_cli.preparing import StateOptions, plan_widening
    from mupscale_cli.pushing import Push, PushOptions, prepare_push
    from mupscale_cli.recipe import Recipe, load_recipe
    from mupscale_cli.verification import Verification, VerifyOptions, WeightsCheck
    from mupscale_cli.verifying import verify, verify_weights
    from mupscale_cli.widening import Widened, widen

_PLACES = {
    "MupscaleError": "errors",
    "clip_grad_norm_": "handoff",
    "param_groups": "handoff",
    "JobPlan": "jobs",
    "PushStep": "jobs",
    "VerifyStep": "jobs",
    "WidenStep": "jobs",
    "plan_job": "jobs",
    "run_job": "jobs",
    "Perturbation": "perturbation",
    "make_method": "methods",
    "StateOptions": "widening",
    "Plan": "plan",
    "Push": "pushing",
    "PushOptions": "pushing",
    "prepare_push": "pushing",
    "Recipe": "recipe",
    "load_recipe": "recipe",
    "Verification": "verification",
    "VerifyOptions": "verification",
    "WeightsCheck": "verification",
    "verify": "verifying",
    "verify_weights": "verifying",
    "Widened": "widening",
    "plan_widening": "widening",
    "widen": "widening",
}
__all__ = [
    "JobPlan",
    "MupscaleError",
    "Perturbation",
    "Plan",
    "Push",
    "PushOptions",
    "PushStep",
    "Recipe",
    "StateOptions",
    "Verification",
    "VerifyOptions",
    "VerifyStep",
    "WeightsCheck",
    "WidenStep",
    "Widened",
    "__version__",
    "clip_grad_norm_",
    "load_recipe",
    "make_method",
    "param_groups",
    "plan_job",
    "plan_widening",
    "prepare_push",
    "run_job",
    "verify",
    "verify_weights",
    "widen",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for only then: torch alone takes a second."""
    if name not in _PLACES:
        raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)

"""Widen a trained network without retraining it.

`import mupscale` gives this module, too: that is what the distribution and the command are called.

>>> import mupscale
>>> plan = mupscale.plan_widening("tiny", factor=2)      # doctest: +SKIP
>>> widened = mupscale.widen("tiny", factor=2)           # doctest: +SKIP
>>> mupscale.verify(widened.output).agrees               # doctest: +SKIP
True
"""

from __future__ import annotations

__version__ = "0.1.0"

TYPE_CHECKING = False  # importing this package imports nothing, so that the command handles Ctrl-C from the start
if TYPE_CHECKING:
    from typing import Any

    from mupscale_cli.architecture.loading import load_recipe
    from mupscale_cli.architecture.types import Recipe
    from mupscale_cli.errors import MupscaleError
    from mupscale_cli.optimizers.torch_groups import clip_grad_norm_, param_groups
    from mupscale_cli.optimizers.trainers.lightning import WideCallback
    from mupscale_cli.optimizers.trainers.mixin import WideTrainerMixin
    from mupscale_cli.optimizers.trainers.scaling import scale_optimizer
    from mupscale_cli.optimizers.trainers.transformers import WideTrainer
    from mupscale_cli.plan import Plan, Size
    from mupscale_cli.tasks.growing.grow import Grown, grow
    from mupscale_cli.tasks.growing.schedule import GrowthSchedule
    from mupscale_cli.tasks.growing.trainer import GrowingTrainer, GrowingTrainerMixin
    from mupscale_cli.tasks.jobs import JobPlan, PushStep, VerifyStep, WidenStep, plan_job, run_job
    from mupscale_cli.tasks.options import WidenOptions
    from mupscale_cli.tasks.planning import plan_widening
    from mupscale_cli.tasks.push import Push, PushOptions, prepare_push
    from mupscale_cli.tasks.verify import verify
    from mupscale_cli.tasks.widen import Widened, widen
    from mupscale_cli.verification.options import VerifyOptions
    from mupscale_cli.verification.result import Verification

_MODULES = {
    "MupscaleError": "errors",
    "GrowingTrainer": "tasks.growing.trainer",
    "GrowingTrainerMixin": "tasks.growing.trainer",
    "WideCallback": "optimizers.trainers.lightning",
    "WideTrainer": "optimizers.trainers.transformers",
    "WideTrainerMixin": "optimizers.trainers.mixin",
    "scale_optimizer": "optimizers.trainers.scaling",
    "clip_grad_norm_": "optimizers.torch_groups",
    "param_groups": "optimizers.torch_groups",
    "Grown": "tasks.growing.grow",
    "grow": "tasks.growing.grow",
    "GrowthSchedule": "tasks.growing.schedule",
    "JobPlan": "tasks.jobs",
    "PushStep": "tasks.jobs",
    "VerifyStep": "tasks.jobs",
    "WidenStep": "tasks.jobs",
    "plan_job": "tasks.jobs",
    "run_job": "tasks.jobs",
    "Plan": "plan",
    "Size": "plan",
    "Push": "tasks.push",
    "PushOptions": "tasks.push",
    "prepare_push": "tasks.push",
    "Recipe": "architecture.types",
    "load_recipe": "architecture.loading",
    "Verification": "verification.result",
    "VerifyOptions": "verification.options",
    "verify": "tasks.verify",
    "Widened": "tasks.widen",
    "WidenOptions": "tasks.options",
    "plan_widening": "tasks.planning",
    "widen": "tasks.widen",
}
__all__ = [
    "GrowingTrainer",
    "GrowingTrainerMixin",
    "Grown",
    "GrowthSchedule",
    "JobPlan",
    "MupscaleError",
    "Plan",
    "Push",
    "PushOptions",
    "PushStep",
    "Recipe",
    "Size",
    "Verification",
    "VerifyOptions",
    "VerifyStep",
    "WideCallback",
    "WideTrainer",
    "WideTrainerMixin",
    "WidenOptions",
    "WidenStep",
    "Widened",
    "__version__",
    "clip_grad_norm_",
    "grow",
    "load_recipe",
    "param_groups",
    "plan_job",
    "plan_widening",
    "prepare_push",
    "run_job",
    "scale_optimizer",
    "verify",
    "widen",
]


def __getattr__(name: str) -> Any:
    """Import a name of the API when it is first used, since importing torch takes a second."""
    if name not in _MODULES:
        raise AttributeError(f"module `mupscale` has no attribute `{name}`")
    import importlib

    return getattr(importlib.import_module(f"mupscale_cli.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]

"""Continue a widened checkpoint in the Trainer of Lightning."""

from __future__ import annotations

import importlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from mupscale_cli.errors import PlanError
from mupscale_cli.optimizers.torch_groups import clip_grad_norm_
from mupscale_cli.optimizers.trainers.scaling import is_scaled, scale_optimizer


def _callback() -> Any:
    """Return Lightning's base class of callbacks, from either of its packages; `object` if neither is installed."""
    for package in ("lightning.pytorch", "pytorch_lightning"):
        with suppress(ImportError):
            return importlib.import_module(package).Callback
    return object


_Callback: Any = _callback()


class WideCallback(_Callback):
    """Lets the Trainer of Lightning train a widened model as the narrow one was trained.

    `configure_optimizers` stays as it was, with the narrow run's hyperparameters. The callback gives its optimizers the
    groups of the wide model before Lightning restores their state, and clips by the weighted norm, at the trainer's
    `gradient_clip_val`.

    Args:
        widened: the checkpoint that `mupscale widen` wrote.

    Raises:
        MupscaleError: in `fit`, if the checkpoint has no record of a widening, the model does not fit it, or the
            trainer clips by value.

    Example:
        >>> trainer = Trainer(callbacks=[mupscale.WideCallback("wide.ckpt")])  # doctest: +SKIP
        >>> trainer.fit(WideModule(), data, ckpt_path="wide.ckpt")  # doctest: +SKIP
    """

    def __init__(self, widened: str | Path) -> None:
        self.widened = widened
        self._max_norm: float | None = None

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Give the optimizers their groups, between their creation and the restoring of their state."""
        if trainer.gradient_clip_algorithm == "value":
            raise PlanError("clipping by value has no equivalent in a wider model", hint="clip by norm")
        self._max_norm = trainer.gradient_clip_val or self._max_norm
        trainer.gradient_clip_val = None
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        for optimizer in trainer.optimizers:
            if not is_scaled(optimizer):
                own = [scheduler for scheduler in schedulers if scheduler.optimizer is optimizer]
                scale_optimizer(optimizer, pl_module, self.widened, schedulers=own)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:  # noqa: ARG002
        """Clip the gradients."""
        if self._max_norm:
            clip_grad_norm_(optimizer, self._max_norm)

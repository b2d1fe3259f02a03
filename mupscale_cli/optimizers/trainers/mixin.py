"""Continue a widened checkpoint in the Trainer of transformers and in the trainers made of it, such as TRL's."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from mupscale_cli.errors import CheckpointError
from mupscale_cli.optimizers.torch_groups import clip_grad_norm_
from mupscale_cli.optimizers.trainers.scaling import is_scaled, scale_optimizer

_Trainer: Any = object  # what the mixin calls are methods of transformers' Trainer


class WideTrainerMixin(_Trainer):
    """Lets a subclass of transformers' Trainer train a widened model as the narrow one was trained.

    The trainer makes the optimizer that `args.optim` names, with the narrow run's hyperparameters in `args`. The mixin
    gives it the groups of the wide model, into which the widened state loads, and clips by the weighted norm.

    Args:
        *args: arguments of the trainer.
        widened: the folder that `mupscale widen` wrote. Default: where the model was loaded from.
        adapter: name of an adapter that was widened with the model, if the trainer trains that.
        **kwargs: arguments of the trainer.

    Raises:
        MupscaleError: in `train`, if the folder has no record of a widening, or the model does not fit it.

    Example:
        >>> class WideSFTTrainer(mupscale.WideTrainerMixin, trl.SFTTrainer): ...  # doctest: +SKIP
        >>> WideSFTTrainer("wide", args, train_dataset=data).train(resume_from_checkpoint="wide")  # doctest: +SKIP
    """

    def __init__(
        self, *args: Any, widened: str | Path | None = None, adapter: str | None = None, **kwargs: Any
    ) -> None:
        self._widened, self._adapter = widened, adapter
        self._schedulers: list[Any] = []
        super().__init__(*args, **kwargs)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Make the trainer's optimizer, with the groups of the wide model."""
        optimizer = super().create_optimizer(*args, **kwargs)
        if not is_scaled(optimizer):
            self._scale(optimizer)
        return optimizer

    def _scale(self, optimizer: Any) -> None:
        folder: Any = self._widened or getattr(self.model, "name_or_path", "")
        try:
            scale_optimizer(optimizer, self.model, folder, schedulers=self._schedulers, adapter=self._adapter)
        except CheckpointError as error:
            hint = "`widened=FOLDER` names the folder that `mupscale widen` wrote"
            raise CheckpointError(error.message, hint=hint) from error

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """Make the trainer's scheduler, which follows the optimizer if it takes over other groups."""
        scheduler = super().create_scheduler(*args, **kwargs)
        self._schedulers[:] = [scheduler]
        return scheduler

    def _clip_grad_norm(self, model: Any) -> Any:
        if self.is_deepspeed_enabled:
            warnings.warn("DeepSpeed clips by the plain norm; steps differ when it clips", stacklevel=2)
            return super()._clip_grad_norm(model)
        return self._weighted_norm(self.args.max_grad_norm)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        if grad_norm is None and not self.is_deepspeed_enabled:
            return self._weighted_norm(float("inf"))
        return super()._get_grad_norm(model, grad_norm=grad_norm)

    def _weighted_norm(self, max_norm: float) -> Any:
        self.accelerator.unscale_gradients(self.optimizer)
        return clip_grad_norm_(self.optimizer, max_norm)

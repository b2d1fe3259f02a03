"""Grow a model at certain steps in the Trainer of transformers and in the trainers made of it."""

from __future__ import annotations

from typing import Any

from transformers import Trainer, TrainerCallback

from mupscale_cli.errors import PlanError
from mupscale_cli.optimizers.trainers.mixin import WideTrainerMixin
from mupscale_cli.optimizers.trainers.scaling import follow_stored_groups
from mupscale_cli.tasks.growing.grow import grow
from mupscale_cli.tasks.growing.schedule import GrowthSchedule


class GrowingTrainerMixin(WideTrainerMixin):
    """Lets a subclass of transformers' Trainer grow its model during the run.

    Before a step of the schedule, the model, the optimizer and the scheduler that the trainer holds become wide ones,
    so logs, the schedule, checkpoints and the loop continue. The trainer clips by the weighted norm. A checkpoint from
    after a growth is that of the wide model: resume it with a model that is loaded from it.

    Args:
        *args: arguments of the trainer.
        growth: when to grow, and how far.
        **kwargs: arguments of the trainer and of `WideTrainerMixin`.

    Raises:
        MupscaleError: in `train`, before the first step, if a growth is impossible or several processes train.

    Example:
        >>> class GrowingSFTTrainer(mupscale.GrowingTrainerMixin, trl.SFTTrainer): ...  # doctest: +SKIP
        >>> growth = mupscale.GrowthSchedule({0.3: 1.5, 0.6: 2}, {"noise": 0.1})  # doctest: +SKIP
        >>> GrowingSFTTrainer(model, args, train_dataset=data, growth=growth).train()  # doctest: +SKIP
    """

    def __init__(self, *args: Any, growth: GrowthSchedule, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_callback(GrowthCallback(growth))

    def _scale(self, optimizer: Any) -> None:
        if self._widened is not None:
            super()._scale(optimizer)
        else:
            follow_stored_groups(optimizer, self.model, self._schedulers)


class GrowthCallback(TrainerCallback):
    """Turns what a trainer holds into the wide model, optimizer and scheduler before certain steps.

    Args:
        growth: when to grow, and how far. What a resumed run has behind it has happened already.
    """

    def __init__(self, growth: GrowthSchedule) -> None:
        self.growth = growth
        self._due: dict[int, dict[str, Any]] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **held: Any) -> None:  # noqa: ARG002
        """Plan every growth, so that an impossible one does not end the run halfway."""
        if args.world_size > 1 or args.n_gpu > 1 or args.deepspeed:
            raise PlanError(
                "a model cannot grow inside a run of several processes or devices, which hold its parameters",
                hint="save a checkpoint, widen it with `mupscale widen`, and continue with `WideTrainer`",
            )
        growths = self.growth.over(state.max_steps)
        self._due = {step: options for step, options in growths.items() if step >= state.global_step}
        self.growth.plans(held["model"], first=len(growths) - len(self._due))

    def on_step_begin(self, args: Any, state: Any, control: Any, **held: Any) -> None:  # noqa: ARG002
        """Grow if this is the step."""
        if (options := self._due.pop(state.global_step, None)) is not None:
            grow(held["model"], held["optimizer"], scheduler=held["lr_scheduler"], in_place=True, **options)


class GrowingTrainer(GrowingTrainerMixin, Trainer):
    """The Trainer of transformers, which grows its model during the run.

    Example:
        >>> growth = mupscale.GrowthSchedule({0.3: 1.5, 0.6: 2}, {"noise": 0.1})  # doctest: +SKIP
        >>> mupscale.GrowingTrainer(model, args, train_dataset=data, growth=growth).train()  # doctest: +SKIP
    """

"""The Trainer of transformers, for widened checkpoints."""

from __future__ import annotations

from transformers import Trainer

from mupscale_cli.optimizers.trainers.mixin import WideTrainerMixin


class WideTrainer(WideTrainerMixin, Trainer):
    """The Trainer of transformers, which trains a widened model as the narrow one was trained.

    Example:
        >>> model = AutoModelForCausalLM.from_pretrained("wide")  # doctest: +SKIP
        >>> trainer = mupscale.WideTrainer(model, args, train_dataset=data)  # doctest: +SKIP
        >>> trainer.train(resume_from_checkpoint="wide")  # doctest: +SKIP
    """

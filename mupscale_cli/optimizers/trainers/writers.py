"""How to continue in the trainer that wrote a checkpoint, which the files beside its weights tell. No torch."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Writer:
    """A trainer whose checkpoints have safetensors files, and no layout of their own.

    Attributes:
        name: its name for `hparams --format`.
        file: pattern of the name of a file that only this trainer writes.
        lines: the lines to continue with, given the path of the wide checkpoint.
    """

    name: str
    file: str
    lines: Callable[[str], tuple[str, ...]]


def _trainer(path: str) -> tuple[str, ...]:
    return (
        "# in place of `Trainer`, with the narrow run's arguments (page `trainers`; TRL: `mupscale.WideTrainerMixin`):",
        "import mupscale",
        f"model = type(model).from_pretrained({path!r})",
        f"mupscale.WideTrainer(model, args, train_dataset=data).train(resume_from_checkpoint={path!r})",
    )


def _accelerate(path: str) -> tuple[str, ...]:
    return (
        "# in the loop of accelerate, with the wide model and the narrow run's optimizer (page `trainers`):",
        "import mupscale",
        f"mupscale.scale_optimizer(optimizer, model, {path!r})  # before `accelerator.prepare`",
        f"accelerator.load_state({path!r})",
        "mupscale.clip_grad_norm_(optimizer, max_norm)  # in place of `accelerator.clip_grad_norm_`",
    )


def _loop(path: str) -> tuple[str, ...]:
    return (
        "# in the training loop, with a model of the wide sizes and the narrow run's optimizer (page `optimizers`):",
        "import mupscale",
        f"mupscale.scale_optimizer(optimizer, model, {path!r})",
        f"optimizer.load_state_dict(state)  # that of {path!r}, read as before",
        "mupscale.clip_grad_norm_(optimizer, max_norm)  # in place of torch's",
    )


# The last one takes any optimizer state.
WRITERS = (
    Writer("trainer", "trainer_state.json", _trainer),
    Writer("accelerate", "random_states_*.pkl", _accelerate),
    Writer("loop", "*", _loop),
)


def continuing_lines(names: Collection[str], path: str) -> tuple[str, ...]:
    """Return the lines with which the trainer that wrote a checkpoint continues.

    Args:
        names: the names of the files that the wide checkpoint consists of.
        path: its path.
    """
    writer = next(each for each in WRITERS if any(fnmatchcase(name, each.file) for name in names))
    return writer.lines(path)

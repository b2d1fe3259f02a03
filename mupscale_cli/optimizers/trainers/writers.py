"""How to continue in the trainer that wrote a checkpoint, which the files beside its weights tell. No torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Writer:
    """A trainer whose checkpoints have safetensors files, and no layout of their own.

    Attributes:
        name: its name for `hparams --format`.
        file: pattern of the name of a file that only this trainer writes.
        lines: the lines to continue with, given the path of the wide checkpoint, whether it resumes a run, and lines
            that set other hyperparameters than those of the state, which loading it replaces.
        sets: whether these lines have a place among its own; if not, the trainer loads the state out of their reach.
    """

    name: str
    file: str
    lines: Callable[[str, bool, Sequence[str]], tuple[str, ...]]
    sets: bool = True

    def wrote(self, names: Collection[str]) -> bool:
        """Return whether a checkpoint of some files resumes a run of this trainer; if not, it starts from weights."""
        return any(fnmatchcase(name, self.file) for name in names)


def _trainer(path: str, resumes: bool, _setting: Sequence[str]) -> tuple[str, ...]:
    resume = f"resume_from_checkpoint={path!r}" if resumes else ""
    return (
        "# in place of `Trainer`, with the narrow run's arguments (page `trainers`; TRL: `mupscale.WideTrainerMixin`):",
        "import mupscale",
        f"model = type(model).from_pretrained({path!r})",
        f"mupscale.WideTrainer(model, args, train_dataset=data).train({resume})",
    )


def _accelerate(path: str, resumes: bool, setting: Sequence[str]) -> tuple[str, ...]:
    load = (f"accelerator.load_state({path!r})",) if resumes else ()
    return (
        "# in the loop of accelerate, with the wide model and the narrow run's optimizer (page `trainers`):",
        "import mupscale",
        f"mupscale.scale_optimizer(optimizer, model, {path!r})  # before `accelerator.prepare`",
        *load,
        *setting,
        "mupscale.clip_grad_norm_(optimizer, max_norm)  # in place of `accelerator.clip_grad_norm_`",
    )


def _loop(path: str, resumes: bool, setting: Sequence[str]) -> tuple[str, ...]:
    load = (f"optimizer.load_state_dict(state)  # that of {path!r}, read as before",) if resumes else ()
    return (
        "# in the training loop, with a model of the wide sizes and the narrow run's optimizer (page `optimizers`):",
        "import mupscale",
        f"mupscale.scale_optimizer(optimizer, model, {path!r})",
        *load,
        *setting,
        "mupscale.clip_grad_norm_(optimizer, max_norm)  # in place of torch's",
    )


# The last one takes any optimizer state.
WRITERS = (
    Writer("trainer", "trainer_state.json", _trainer, sets=False),
    Writer("accelerate", "random_states_*.pkl", _accelerate),
    Writer("loop", "*", _loop),
)


def continuing_lines(names: Collection[str], path: str) -> tuple[str, ...]:
    """Return the lines with which the trainer that wrote a checkpoint continues.

    Args:
        names: the names of the files that the wide checkpoint consists of.
        path: its path.
    """
    return next(each for each in WRITERS if each.wrote(names)).lines(path, True, ())

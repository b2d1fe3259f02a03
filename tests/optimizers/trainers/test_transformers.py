"""The Trainer of transformers continues a widened checkpoint like the narrow one."""

import pytest
import torch
import transformers
from hf_trainer import CLIP, REL, RandomTokens, arguments, losses, trained

import mupscale
from mupscale_cli.errors import CheckpointError
from mupscale_cli.optimizers.trainers.transformers import WideTrainer
from mupscale_cli.tasks.widen import widen

OPTIMIZERS = {
    "adamw_torch": {},
    "sgd": {"learning_rate": 0.3, "optim_args": "momentum=0.9,nesterov=true"},
    "adagrad": {"learning_rate": 0.03},
    "rmsprop": {"optim_args": "momentum=0.5,centered=true"},
    "adafactor": {},
}


def continued(checkpoint, folder, wide_folder, settings):
    """Widen a checkpoint of the Trainer and continue it there; return the losses and norms by step."""
    widened = widen(checkpoint, wide_folder, 2, verify=False)
    trainers = []

    class Remembered(WideTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            trainers.append(self)

    names = {
        "model": transformers.AutoModelForCausalLM.from_pretrained(widened.output, dtype=torch.float64),
        "args": arguments(folder, settings),
        "data": RandomTokens(),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mupscale, "WideTrainer", Remembered)
        exec("\n".join(widened.into_trainer), names)  # noqa: S102 (the lines that `widen` prints)
    return losses(trainers[0])


@pytest.fixture(autouse=True)
def quiet():
    transformers.utils.logging.set_verbosity_error()


@pytest.mark.parametrize(
    ("case", "optim"),
    [
        ("Llama-tied", "adamw_torch"),
        ("Qwen2-untied", "sgd"),
        ("Llama-tied", "adagrad"),
        ("Qwen2-untied", "rmsprop"),
        ("Llama-tied", "adafactor"),
    ],
)
def test_a_run_is_saved_widened_and_resumed(case, optim, tmp_path):
    settings = {"optim": optim, **OPTIMIZERS[optim]}
    narrow = trained(case, tmp_path / "run", settings)
    wide_losses = continued(tmp_path / "run" / "checkpoint-4", tmp_path / "wider", tmp_path / "wide", settings)
    assert {"trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth"} <= {
        file.name for file in (tmp_path / "wide").iterdir()
    }
    assert set(wide_losses) == set(range(1, 9))  # the first four come with trainer_state.json
    for step in range(5, 9):
        assert wide_losses[step] == pytest.approx(narrow[step], rel=REL), step
    assert narrow[8][1] > CLIP, "clipping did nothing, so that it was not tried"


def test_a_run_is_widened_twice_and_interrupted(tmp_path):
    """The second growth splits the groups of the first one, which the Trainer does not make."""
    settings = {"save_steps": 2, "max_steps": 10}
    narrow = trained("Llama-tied", tmp_path / "run", settings)
    continued(tmp_path / "run" / "checkpoint-4", tmp_path / "wider", tmp_path / "wide", settings)
    wide_losses = continued(tmp_path / "wider" / "checkpoint-6", tmp_path / "widest", tmp_path / "wide-2", settings)
    for step in (7, 8, 9, 10):
        assert wide_losses[step] == pytest.approx(narrow[step], rel=REL), step
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "wide-2", dtype=torch.float64)
    again = WideTrainer(model, arguments(tmp_path / "widest", settings), train_dataset=RandomTokens())
    again.train(resume_from_checkpoint=str(tmp_path / "widest" / "checkpoint-8"))  # the wide run's own
    for step in (9, 10):
        assert losses(again)[step] == pytest.approx(narrow[step], rel=REL), step


def test_the_norm_is_logged_without_clipping(tmp_path):
    settings = {"max_grad_norm": 0.0, "max_steps": 6}
    narrow = trained("Llama-tied", tmp_path / "run", settings)
    wide_losses = continued(tmp_path / "run" / "checkpoint-4", tmp_path / "wider", tmp_path / "wide", settings)
    assert wide_losses[6] == pytest.approx(narrow[6], rel=REL)


def test_a_folder_without_record_is_refused(saved, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(saved("Llama-tied"))
    trainer = WideTrainer(model, arguments(tmp_path / "wide", {}), train_dataset=RandomTokens())
    with pytest.raises(CheckpointError, match="not written by mupscale") as refused:
        trainer.train()
    assert "widened=" in refused.value.hint

"""The Trainer of transformers continues a widened checkpoint like the narrow one."""

import pytest
import torch
import transformers
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from helpers import build
from mupscale_cli import clip_grad_norm_, param_groups
from mupscale_cli.tasks.widen import widen

LR, DECAY, CLIP = 3e-3, 0.1, 0.5
# Whatever the model's type, the reference computes norms, softmax and rotary tables in float32: some roundings of it.
REL = 16 * 2**-24


class RandomTokens(Dataset):
    """The same sequences in every run."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        tokens = torch.randint(50, (9,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": tokens, "labels": tokens}


class WideTrainer(Trainer):
    """A user's Trainer that continues: groups from the record, and clipping by the weighted norm."""

    checkpoint = None

    def create_optimizer(self, model=None):  # noqa: ARG002 (the Trainer's signature)
        if self.optimizer is None:
            groups = param_groups(
                self.model,
                self.checkpoint,
                lr=self.args.learning_rate,
                weight_decay=self.args.weight_decay,
                eps=self.args.adam_epsilon,
            )
            self.optimizer = torch.optim.AdamW(groups)
        return self.optimizer

    def _clip_grad_norm(self, model):  # noqa: ARG002 (the Trainer's signature)
        return clip_grad_norm_(self.optimizer, self.args.max_grad_norm)


def arguments(folder, steps):
    return TrainingArguments(
        folder,
        max_steps=steps,
        save_steps=4,
        logging_steps=1,
        learning_rate=LR,
        weight_decay=DECAY,
        max_grad_norm=CLIP,
        lr_scheduler_type="cosine",
        warmup_steps=2,
        per_device_train_batch_size=2,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        seed=0,
    )


def losses(trainer):
    return {
        entry["step"]: (entry["loss"], entry["grad_norm"]) for entry in trainer.state.log_history if "loss" in entry
    }


@pytest.mark.parametrize("case", ["Llama-tied", "Qwen2-untied"])
def test_a_run_is_saved_widened_and_resumed(case, tmp_path):
    transformers.utils.logging.set_verbosity_error()
    narrow = Trainer(
        build(case, dtype=torch.float64).train(), arguments(tmp_path / "run", 8), train_dataset=RandomTokens()
    )
    narrow.train()
    widened = widen(tmp_path / "run" / "checkpoint-4", tmp_path / "wide", 3)
    assert {"trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth"} <= {
        f.name for f in widened.output.iterdir()
    }
    model = transformers.AutoModelForCausalLM.from_pretrained(widened.output, dtype=torch.float64)
    wide = WideTrainer(model, arguments(tmp_path / "wider", 8), train_dataset=RandomTokens())
    wide.checkpoint = widened.output
    wide.train(resume_from_checkpoint=str(widened.output))
    expected, wide_losses = losses(narrow), losses(wide)
    assert set(wide_losses) == set(range(1, 9))  # the first four come with trainer_state.json
    for step in range(5, 9):
        assert wide_losses[step] == pytest.approx(expected[step], rel=REL), step
    assert expected[8][1] > CLIP, "clipping did nothing, so that it was not tried"

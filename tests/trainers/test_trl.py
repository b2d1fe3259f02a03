"""TRL: `SFTTrainer` continues a widened checkpoint like the narrow one."""

import pytest
import tokenizers
import torch
import transformers

from helpers import build
from mupscale_cli import WideTrainerMixin
from mupscale_cli.tasks.widen import widen

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

CLIP = 0.5
REL = 16 * 2**-24  # the reference computes norms, softmax and rotary tables in float32: some roundings of it


def random_tokens():
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randint(50, (9,), generator=generator).tolist() for _ in range(64)]
    table = datasets.table.InMemoryTable.from_pydict({"input_ids": tokens})
    return datasets.Dataset(table, fingerprint="tokens")  # computing one pickles parts of pyarrow, which can fail


class WideSFTTrainer(WideTrainerMixin, trl.SFTTrainer):
    """What a user writes."""


def arguments(folder):
    return trl.SFTConfig(
        str(folder),
        max_steps=8,
        save_steps=4,
        logging_steps=1,
        learning_rate=3e-3,
        weight_decay=0.1,
        max_grad_norm=CLIP,
        lr_scheduler_type="cosine",
        warmup_steps=2,
        per_device_train_batch_size=2,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        disable_tqdm=True,
        seed=0,
        dataset_kwargs={"skip_prepare_dataset": True},  # it has tokens already
    )


def losses(trainer):
    return {e["step"]: (e["loss"], e["grad_norm"]) for e in trainer.state.log_history if "loss" in e}


def test_a_run_is_widened_and_resumed(tmp_path):
    data = random_tokens()
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({str(number): number for number in range(50)}))
    special = {"pad_token": "0", "eos_token": "1"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special)
    model = build("Llama-tied", dtype=torch.float64).train()
    narrow = trl.SFTTrainer(model, arguments(tmp_path / "run"), train_dataset=data, processing_class=tokenizer)
    narrow.train()
    widened = widen(tmp_path / "run" / "checkpoint-4", tmp_path / "wide", 2).output
    model = transformers.AutoModelForCausalLM.from_pretrained(widened, dtype=torch.float64)
    wide = WideSFTTrainer(model, arguments(tmp_path / "wider"), train_dataset=data, processing_class=tokenizer)
    wide.train(resume_from_checkpoint=str(widened))
    expected, found = losses(narrow), losses(wide)
    for step in range(5, 9):
        assert found[step] == pytest.approx(expected[step], rel=REL), step
    assert expected[8][1] > CLIP

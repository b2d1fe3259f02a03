"""litgpt's pretraining continues with a widened `lit_model.pth` as with the narrow one, after three changed lines."""

import csv
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch

import mupscale_cli as mupscale
from mupscale_cli.checkpoints.layouts.litgpt import LITGPT

litgpt = pytest.importorskip("litgpt")
pretrain = pytest.importorskip("litgpt.pretrain")

TORCH_COMPILE = torch.compile
STEPS, SAVED = 8, 3
SIZES = {"block_size": 16, "n_layer": 2, "n_embd": 24, "padded_vocab_size": 61, "vocab_size": 61, "n_head": 4}
LLAMA = {
    **SIZES,
    "norm_class_name": "RMSNorm",
    "mlp_class_name": "LLaMAMLP",
    "bias": False,
    "parallel_residual": False,
    "rotary_percentage": 1.0,
    "intermediate_size": 20,
    "n_query_groups": 2,
}
MODELS = {"pythia": {**SIZES, "n_embd": 32, "rotary_percentage": 0.25}, "llama": LLAMA}


class Loader(torch.utils.data.DataLoader):
    """Batches that depend on the number of the step alone, with a state as litdata's loader has."""

    def __init__(self):
        super().__init__(range(10_000), batch_size=2)
        self.position = {"step": 0}

    def __iter__(self):
        while True:
            seed = self.position["step"]
            self.position["step"] += 1
            yield torch.randint(0, 61, (2, 17), generator=torch.Generator().manual_seed(seed))

    def state_dict(self):
        return dict(self.position)

    def load_state_dict(self, state):
        self.position.update(state)


class Data(litgpt.data.DataModule):
    """Data without files."""

    def connect(self, tokenizer=None, batch_size=1, max_seq_length=None):
        pass

    def train_dataloader(self):
        return Loader()

    val_dataloader = train_dataloader


def changed_module():
    """Return litgpt's pretraining with the lines changed that `widen` prints."""
    text = Path(pretrain.__file__).read_text(encoding="utf-8")
    lines = [line for line in LITGPT.next_lines("wide") if line[0] in "-+"]
    for removed, added in zip(lines[::2], lines[1::2], strict=True):
        (sign, old), (plus, new) = removed.split(" ", 1), added.split(" ", 1)
        assert (sign, plus) == ("-", "+")
        assert text.count(old) == 1
        text = text.replace(old, new)
    module = ModuleType("litgpt.pretrain")
    exec(compile(text, "pretrain.py", "exec"), vars(module))  # noqa: S102 (litgpt's own text)
    return module


def losses(monkeypatch, module, config, out, *, resume=False):
    """Run a pretraining and return the loss of each step."""
    monkeypatch.setattr(torch, "compile", partial(TORCH_COMPILE, backend="eager"))
    monkeypatch.setattr(module, "save_hyperparameters", lambda *_: None)  # parses the command line
    module.setup(
        "none",
        config,
        out,
        precision="32-true",
        resume=resume,
        data=Data(),
        train=litgpt.args.TrainArgs(
            save_interval=SAVED,
            log_interval=1,
            global_batch_size=2,
            micro_batch_size=2,
            max_tokens=2 * 16 * STEPS,
            max_norm=0.5,
            min_lr=1e-3,
            lr_warmup_steps=2,
        ),
        eval=litgpt.args.EvalArgs(interval=1000, max_iters=1),
        optimizer={
            "class_path": "torch.optim.AdamW",
            "init_args": {"lr": 1e-2, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-4},
        },
        devices=1,
        logger_name="csv",
    )
    with next(out.glob("logs/csv/*/metrics.csv")).open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file) if row.get("loss")]


@pytest.mark.parametrize("name", MODELS)
def test_pretraining_continues_as_in_the_narrow_run(name, tmp_path, monkeypatch):
    narrow = losses(monkeypatch, pretrain, litgpt.Config(**MODELS[name]), tmp_path / "narrow")
    source = tmp_path / "narrow" / f"step-{SAVED:08d}"
    widened = mupscale.widen(source, tmp_path / "wide", 2)
    assert widened.verification.agrees
    config = litgpt.Config.from_file(widened.output / "model_config.yaml")
    assert (config.n_embd, config.n_head) == (2 * MODELS[name]["n_embd"], 8)
    resume = widened.output / "lit_model.pth"
    wide = losses(monkeypatch, changed_module(), config, tmp_path / "on", resume=resume)
    assert len(wide) == STEPS - SAVED
    assert wide == pytest.approx(narrow[SAVED:], rel=2e-6)
    assert narrow[SAVED:] != pytest.approx(narrow[SAVED - 1 : -1], rel=1e-3)

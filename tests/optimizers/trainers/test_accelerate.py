"""The loop of the page `trainers` continues what accelerate's `save_state` wrote and `widen` widened."""

import re

import pytest
import torch
import transformers
from accelerate import Accelerator
from doc_commands import MANUAL, blocks

import mupscale
from helpers import build
from mupscale_cli.tasks.widen import widen

CLIP = "0.3"
REL = 16 * 2**-24  # the reference computes norms, softmax and rotary tables in float32: some roundings of it
(PAGE,) = (text for text in blocks(MANUAL / "trainers.md", "python") if "accelerator.load_state" in text)
SETTING_UP, LOOP = PAGE.replace("1.0)", f"{CLIP})").split("for batch", 1)
LOOP = f"for batch{LOOP}"
OURS = "mupscale.clip_grad_norm_(optimizer, "
THEIRS = "accelerator.clip_grad_norm_(model.parameters(), "


def names(model, batches):
    found = []
    model.train().register_forward_hook(lambda _module, _inputs, output: found.append(output.loss.item()))
    return {
        "mupscale": mupscale,
        "torch": torch,
        "Accelerator": lambda: Accelerator(cpu=True),
        "get_scheduler": transformers.get_scheduler,
        "model": model,
        "loader": torch.utils.data.DataLoader(batches, batch_size=2),
    }, found


def test_the_loop_of_the_page_continues(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokens = torch.randint(50, (16, 9), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": each, "labels": each} for each in tokens]
    narrow, expected = names(build("Llama-untied", dtype=torch.float64), data[:8])
    exec(re.sub(r"^mupscale.*|.*load_state.*", "", SETTING_UP, flags=re.MULTILINE), narrow)  # noqa: S102 (the page)
    plain = LOOP.replace(OURS, THEIRS)
    assert plain != LOOP
    exec(plain, narrow)  # noqa: S102
    narrow["accelerator"].save_state("narrow")
    narrow["accelerator"].unwrap_model(narrow["model"]).save_pretrained("narrow")
    narrow["loader"] = narrow["accelerator"].prepare(torch.utils.data.DataLoader(data[8:], batch_size=2))
    exec(plain.replace(THEIRS, f"norm = {THEIRS}"), narrow)  # noqa: S102
    widened = widen("narrow", "wide", 2, verify=False)
    assert "accelerator.load_state('wide')" in widened.into_trainer
    model = transformers.AutoModelForCausalLM.from_pretrained("wide", dtype=torch.float64)
    wide, found = names(model, data[8:])
    exec(PAGE.replace("1.0)", f"{CLIP})"), wide)  # noqa: S102
    assert found == pytest.approx(expected[4:], rel=REL)
    assert narrow["norm"] > float(CLIP), "clipping did nothing, so that it was not tried"

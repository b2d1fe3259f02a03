"""`mupscale recipes`."""

import json

import torch
from safetensors.torch import load_file

from cli_runner import run


def test_show_prints_conditions_and_reasons():
    shown = run("recipes", "show", "llama").out
    assert "tied_readout" in shown
    assert "--axis layers:N adds blocks" in shown


def test_check_against_a_checkpoint(saved):
    assert "each matches one rule and has its shape" in run("recipes", "check", "llama", str(saved("Llama-tied"))).out
    assert run("recipes", "check", "qwen3", str(saved("Llama-tied"))).code == 2


def test_check_reads_a_checkpoint_as_the_user_says(saved, tmp_path):
    file = tmp_path / "last.pt"
    torch.save({"nets": {"student": load_file(saved("Llama-tied") / "model.safetensors")}}, file)
    assert "no weights at the usual keys" in run("recipes", "check", "llama", str(file)).err
    config = json.loads((saved("Llama-tied") / "config.json").read_text())
    sizes = ("num_attention_heads", "num_key_value_heads", "hidden_size", "tie_word_embeddings")
    words = [word for key in sizes for word in ("--set", f"{key}={json.dumps(config[key])}")]
    shown = run("recipes", "check", "llama", str(file), "--weights-key", "nets.student", *words)
    assert "each matches one rule and has its shape" in shown.out, shown.err
    assert "there is none" in run("recipes", "show", "llama", *words).err

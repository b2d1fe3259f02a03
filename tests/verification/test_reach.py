"""Inputs that reach rare tokens, late positions, far distances, every expert, padding and training mode."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from helpers import build, change_config
from mupscale_cli.tasks.verify import verify
from mupscale_cli.tasks.widen import widen
from mupscale_cli.verification.inputs.batch import Inputs
from mupscale_cli.verification.inputs.tokens import varied_decoder_tokens, varied_tokens
from mupscale_cli.verification.reach import Run

FAR = {"relative_attention_max_distance": 40}
# Case, its settings, a tensor, and the row of it that only special inputs reach; None for all.
HIDDEN = {
    "a token": ("Qwen2-tied", {}, "model.embed_tokens.weight", 37),
    "the last position": ("GPT2-tied", {}, "transformer.wpe.weight", -1),
    "a far distance": ("T5-gated", FAR, "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", 15),
}


@pytest.mark.parametrize("hidden", HIDDEN)
def test_function_notices_what_only_some_inputs_reach(hidden, saved, tmp_path):
    case, settings, name, row = HIDDEN[hidden]
    wide = tmp_path / "wide"
    widen(saved(case, **settings), wide, 2, verify=False)
    tensors = load_file(wide / "model.safetensors")
    tensors[name][row] += 1
    save_file(tensors, wide / "model.safetensors", metadata={"format": "pt"})
    assert not verify(wide, only=["function"]).agrees


def test_function_notices_an_expert_and_a_window(saved, tmp_path):
    wide = tmp_path / "wide"
    widen(saved("Mixtral-untied", num_local_experts=6, sliding_window=20), wide, 2, verify=False)
    found = verify(wide, only=["function"]).function
    assert found.agrees
    assert any("every expert" in comparison.what for comparison in found.comparisons)
    change_config(wide, sliding_window=None)
    assert not verify(wide, only=["function"]).agrees


def test_training_mode_is_compared_if_the_model_is_not_random(saved, tmp_path):
    for case, is_compared in (("ResNet-basic", True), ("GPT2-tied", False)):
        widen(saved(case), tmp_path / case, 2, verify=False)
        found = verify(tmp_path / case, only=["function"]).function
        assert found.agrees
        assert any("training mode" in comparison.what for comparison in found.comparisons) == is_compared


def test_varied_tokens_are_all_of_the_vocabulary():
    config = build("Qwen2-tied").config
    tokens = varied_tokens(config, torch.Generator().manual_seed(0), 4, 25)
    assert tokens.flatten().bincount().tolist() == [2] * 50


@pytest.mark.parametrize(
    ("case", "what"),
    [
        ("ProphetNet-tied", "of 2 sequences of 62 tokens"),  # it predicts at the position behind each of 62 tokens
        ("Nystromformer-tied", "of 2 sequences of 64 tokens"),  # cut into segments
        ("Canine", "of 2 sequences of 16 tokens, every one of the vocabulary"),  # characters, which it hashes
    ],
)
def test_further_runs_have_the_texts_that_a_class_takes(case, what, saved, tmp_path):
    widen(saved(case), tmp_path / "wide", 2, verify=False)
    found = verify(tmp_path / "wide", only=["function"]).function
    assert found.agrees
    assert any(what in comparison.what for comparison in found.comparisons)


def test_further_runs_of_a_decoder_have_every_channel_of_codes(saved, tmp_path):
    """Dia reads texts and writes several codes at once."""
    config = build("Dia").config
    tokens = varied_decoder_tokens(config, torch.Generator().manual_seed(0), 2, 16)
    assert tokens.shape == (2, 16, 3)
    assert set(tokens.flatten().tolist()) == set(range(config.decoder_config.vocab_size))
    widen(saved("Dia"), tmp_path / "wide", 2, verify=False)
    found = verify(tmp_path / "wide", only=["function"]).function
    assert found.agrees
    assert any("right-padded" in comparison.what for comparison in found.comparisons)


def test_a_run_in_training_mode_draws_the_same_numbers_for_both_models():
    """Whole layers may be dropped so rarely that two runs of the narrow model do not show it."""
    run = Run("in training mode", Inputs((torch.ones(4, 8),), {}, ""), is_training=True)
    before = torch.random.get_rng_state()
    first, second, other = (run.output(nn.Dropout(0.5), torch.device("cpu"), torch.float32, seed) for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)

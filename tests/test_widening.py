"""From disk to disk with the reference implementation, everything randomised, in float64."""

import pytest
import torch
import transformers

from mupscale_cli.verify import VerifyOptions
from mupscale_cli.widening import widen

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "intermediate_size": 48, "vocab_size": 50}  # fmt: skip


def randomise(model):
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / parameter.shape[-1] ** 0.5
    return model


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", ["Llama", "Qwen2", "Qwen3", "Gemma"])
def test_widen_against_transformers(name, tied, factor, tmp_path):
    config = getattr(transformers, f"{name}Config")(**SIZES, tie_word_embeddings=tied, head_dim=8)
    model = randomise(getattr(transformers, f"{name}ForCausalLM")(config).double())
    model.save_pretrained(tmp_path / "narrow")
    widened = widen(tmp_path / "narrow", tmp_path / "wide", factor, verify=VerifyOptions(dtype="float64"))
    assert widened.verification is not None
    assert widened.verification.agrees
    assert widened.verification.max_rel < 1e-12

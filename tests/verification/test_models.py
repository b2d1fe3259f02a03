"""Building the reference model of a checkpoint with transformers."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import change_config, save_model
from mupscale_cli.checkpoints.reading import open_checkpoint
from mupscale_cli.errors import VerifyError
from mupscale_cli.verification.models import build_reference_model


def test_transformers_must_not_initialize_missing_weights(tmp_path):
    source = save_model(tmp_path / "narrow")
    tensors = load_file(source / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(VerifyError, match="up_proj"):
        build_reference_model(open_checkpoint(source), torch.float64)


def test_a_config_that_transformers_rejects_is_an_error(tmp_path):
    source = save_model(tmp_path / "narrow")
    change_config(source, num_hidden_layers="two")
    with pytest.raises(VerifyError, match="narrow"):
        build_reference_model(open_checkpoint(source), torch.float64)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_weight_is_loaded_in_every_type(dtype, saved):
    """Some weights of T5 stay float32 in transformers; converting them must not make it initialize them at random."""
    source = saved("T5-gated")
    stored = load_file(source / "model.safetensors")
    model = build_reference_model(open_checkpoint(source), dtype)
    for name, value in model.named_parameters():
        assert torch.equal(value, stored[name].to(dtype)), name

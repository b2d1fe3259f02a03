"""Recording the outputs of modules by their names, and rounding scaled tensors."""

import pytest
import torch
from torch import nn

from mupscale_cli.checkpoints.reading import open_checkpoint
from mupscale_cli.tasks.planning import plan_widening
from mupscale_cli.verification.activations import name_in, recording, round_scaled_tensors
from mupscale_cli.verification.models import build_reference_model


def test_scaled_tensors_are_rounded_as_stored_ones_are(saved):
    source = saved("Gemma-tied", dtype=torch.bfloat16)
    plan = plan_widening(source, factor=2)
    model = build_reference_model(open_checkpoint(source), torch.float64)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    round_scaled_tensors(model, plan)
    root = 2**0.5
    stored_embedding = (before["model.embed_tokens.weight"] / root).bfloat16().double()
    stored_norm = ((1 + before["model.norm.weight"]) / root - 1).bfloat16().double()
    expected = {
        **before,
        "model.embed_tokens.weight": stored_embedding * root,
        "lm_head.weight": stored_embedding * root,
        "model.norm.weight": (1 + stored_norm) * root - 1,
    }
    after = model.state_dict()
    for name, value in expected.items():
        # Two operations round in float64, on numbers below 8.
        torch.testing.assert_close(after[name], value, rtol=0, atol=2**-48, msg=name)
    assert not torch.equal(before["model.norm.weight"], after["model.norm.weight"])


def test_recording_keeps_the_first_output_of_each_named_module_and_removes_its_hooks():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    with recording(model, {"2", "0"}) as recorder:
        first = model(torch.ones(1, 2))
        model(torch.zeros(1, 2))
    assert list(recorder.outputs) == ["0", "2"]
    assert torch.equal(recorder.outputs["2"], first)
    recorder.outputs.clear()
    model(torch.ones(1, 2))
    assert not recorder.outputs


def test_recording_removes_its_hooks_after_an_error():
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(RuntimeError), recording(model, {"0"}):
        model(torch.ones(1, 3))
    assert not model[0]._forward_hooks


def test_names_of_a_base_model_are_found_with_its_prefix():
    model = nn.Module()
    model.base_model_prefix = "transformer"
    known = {"transformer.wte": 1, "lm_head": 2}
    assert name_in(model, "wte", known) == "transformer.wte"
    assert name_in(model, "lm_head", known) == "lm_head"
    assert name_in(model, "wpe", known) is None

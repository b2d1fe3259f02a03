"""Deeper models of every architecture, in float64: new blocks are the identity, or are refused with the reason."""

import json

import pytest
import torch
from safetensors.torch import load_file

from helpers import change_config, save_model
from mupscale_cli.errors import PlanError
from mupscale_cli.tasks.planning import plan_widening
from mupscale_cli.tasks.verify import verify
from mupscale_cli.tasks.widen import widen

# One case for each way to write to the residual stream and to name blocks.
CASES = ["Llama-tied", "GPT2-tied", "GPTNeoX-tied", "Mixtral-untied", "Gemma2-tied", "ViT-classifier", "Mamba2-tied"]


def deepen(source, target, **options):
    widened = widen(source, target, dtype="float64", **options)
    assert widened.verification is not None, widened.skipped
    assert widened.verification.agrees, widened.verification
    assert widened.verification.max_rel == 0
    return widened


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("layers", "place"), [(3, "start"), (4, "interleaved")])
def test_new_blocks_are_the_identity(case, layers, place, saved, tmp_path):
    widened = deepen(saved(case), tmp_path / "deep", layers=layers, layers_at=place)
    assert widened.verification.num_modules > 3
    assert widened.record["blocks"]["layers"]["wide_size"] == layers


def test_encoder_and_decoder_are_separate_stacks(saved, tmp_path):
    """The relative positions of T5 stay in the first block, even if that is new."""
    options = {"axes": {"encoder_layers": 2, "decoder_layers": 1.5}, "layers_at": "start"}
    with pytest.raises(PlanError, match="names 1 position"):
        plan_widening(saved("T5-tied"), axes={"num_layers": 2, "decoder_layers": 1.5}, layers_at="0")
    widened = deepen(saved("T5-tied"), tmp_path / "deep", **options)
    config = json.loads((tmp_path / "deep" / "config.json").read_text())
    assert (config["num_layers"], config["num_decoder_layers"]) == (4, 3)
    biases = [name for name in load_file(tmp_path / "deep" / "model.safetensors") if "relative" in name]
    assert {name.split(".")[2] for name in biases} == {"0"}
    assert widened.record["blocks"]["decoder_layers"] == {"size": 2, "wide_size": 3, "sources": [0, 0, 1], "new": [0]}
    with pytest.raises(PlanError, match="2 stacks of blocks"):
        plan_widening(saved("T5-tied"), layers=4)


def test_width_and_depth_commute(saved, tmp_path):
    source = saved("Llama-tied")
    widen(source, tmp_path / "both", 2, layers=3, verify=False)
    widen(source, tmp_path / "wide", 2, verify=False)
    widen(tmp_path / "wide", tmp_path / "wide-deep", layers=3, verify=False)
    widen(source, tmp_path / "deep", layers=3, verify=False)
    widen(tmp_path / "deep", tmp_path / "deep-wide", 2, verify=False)
    both, *others = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("both", "wide-deep", "deep-wide")
    )
    data = [content[int.from_bytes(content[:8], "little") + 8 :] for content in (both, *others)]
    assert data[0] == data[1] == data[2]


def test_zeros_are_where_blocks_write(saved, tmp_path):
    deepen(saved("Llama-untied"), tmp_path / "deep", layers=3, layers_at="end")
    tensors = load_file(tmp_path / "deep" / "model.safetensors")
    new = {name.removeprefix("model.layers.2."): value for name, value in tensors.items() if ".layers.2." in name}
    zero = {name for name, value in new.items() if not value.any()}
    writers = {"self_attn.o_proj.weight", "self_attn.o_proj.bias", "mlp.down_proj.weight", "mlp.down_proj.bias"}
    assert zero == writers
    assert all(torch.equal(new[name], tensors[f"model.layers.1.{name}"]) for name in new.keys() - zero)


def test_verification_knows_the_positions(saved, tmp_path):
    """The recorded blocks are compared with those that they copy, and old blocks train as before."""
    widened = widen(saved("Qwen3-tied"), tmp_path / "deep", 2, layers=4, dtype="float64")
    assert widened.verification.max_rel < 1e-14
    found = verify(tmp_path / "deep", steps=3)
    assert found.agrees
    assert found.training.frozen == ("layers",)
    assert found.training.steps_agree


def test_stacked_blocks_compute_another_function(saved, tmp_path):
    widened = widen(saved("Llama-untied"), tmp_path / "deep", layers=4, method="stack", dtype="float64")
    assert widened.record["blocks"]["layers"]["sources"] == [0, 1, 0, 1]
    assert not widened.verification.keeps_function
    assert widened.verification.max_rel > 1e-3
    tensors = load_file(tmp_path / "deep" / "model.safetensors")
    for name in tensors:
        if ".layers.2." in name:
            assert torch.equal(tensors[name], tensors[name.replace(".2.", ".0.")])


def test_a_config_with_another_number_of_blocks_is_refused(tmp_path):
    change_config(save_model(tmp_path / "narrow"), num_hidden_layers=3)
    with pytest.raises(PlanError, match="no tensor of block 2"):
        plan_widening(tmp_path / "narrow", layers=4)

"""The models of the method's own experiments: recipes for standard and maximal update parametrization."""

import json
from pathlib import Path

import paper_models
import pytest
from safetensors.torch import save_file, save_model

from helpers import randomize
from mupscale_cli.optimizers.torch_groups import param_groups
from mupscale_cli.tasks.verify import verify
from mupscale_cli.tasks.widen import widen

MODULE = Path(paper_models.__file__)
GPT = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 32, "vocab_size": 50}


def save(folder, model, config=None):
    file = folder / "net.safetensors"
    save_model(randomize(model), file)
    if config:
        (folder / "net.config.json").write_text(json.dumps(config))
    return file


def check(source, build, factor=None, axes=None, recipe=None, steps=0):
    options = {"dtype": "float64", "model": f"{MODULE}:{build}"}
    wide = source.with_name("wide.safetensors")
    found = widen(source, wide, factor, axes, recipe=recipe, **options).verification
    assert found.agrees
    assert found.max_rel < 1e-12
    if steps:
        assert verify(wide, steps=steps, **options).training.max_rel < 1e-12


@pytest.mark.parametrize(
    ("form", "factor", "axes", "bias"),
    [
        ("nanogpt", 2, {}, True),
        ("nanogpt", 3, {}, False),
        ("nanogpt", None, {"embed": 2, "d": 2, "ffn": 2}, False),
        ("nanogpt", None, {"embed": 6, "h": 2, "d": 3, "ffn": 6}, True),
        ("nanogpt-mup", 2, {}, False),
        ("nanogpt-mup", 3, {}, True),
        ("nanogpt-mup", 2, {"h": 2, "d": 1}, True),
    ],
)
def test_gpt(form, factor, axes, bias, tmp_path):
    config = {**GPT, "bias": bias, "model_type": form}
    # In standard form a wider head scales the queries, one third of a fused tensor: its epsilon cannot be exact.
    steps = 0 if form == "nanogpt" and "d" in axes else 4
    check(save(tmp_path, paper_models.build_gpt(config), config), "build_gpt", factor, axes, steps=steps)


@pytest.mark.parametrize("factor", [2, 3])
def test_mlp_with_mu_readout(factor, tmp_path):
    model = paper_models.build_mlp_mup({"shapes": {"0.weight": (8, 5), "2.weight": (6, 8), "4.weight": (3, 6)}})
    check(save(tmp_path, model), "build_mlp_mup", factor, recipe="mlp_mup", steps=4)


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("mup", [False, True])
def test_resnet18(mup, factor, tmp_path):
    source = save(tmp_path, paper_models.ResNet18([4, 6], 3, mup=mup))
    name = "resnet18_mup" if mup else "resnet18"
    check(source, f"build_{name}", factor, recipe=name if mup else None)


@pytest.mark.parametrize("kept", ["lm_head.weight", "transformer.wte.weight"])
def test_groups_of_a_tied_model_under_either_saved_name(kept, tmp_path):
    """`save_model` keeps the readout's name, training loops the embedding's."""
    config = {**GPT, "bias": False, "model_type": "nanogpt"}
    model = randomize(paper_models.build_gpt(config))
    dropped = {"lm_head.weight", "transformer.wte.weight"} - {kept}
    tensors = {name: value.contiguous() for name, value in model.state_dict().items() if name not in dropped}
    save_file(tensors, tmp_path / "net.safetensors")
    (tmp_path / "net.config.json").write_text(json.dumps(config))
    wide = tmp_path / "wide.safetensors"
    widen(tmp_path / "net.safetensors", wide, 2, verify=False)
    wider = paper_models.build_gpt({**config, "n_embd": 64, "n_head": 8})
    groups = param_groups(wider, wide, lr=1.0)
    rates = {name: group["lr"] for group in groups for name in group["param_names"]}
    assert rates["transformer.wte.weight"] == 1.0
    assert rates["transformer.h.0.mlp.c_fc.weight"] == 0.5

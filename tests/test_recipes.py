"""Every built-in recipe against the reference implementation, everything random, in float64."""

from pathlib import Path

import pytest
import torch

import mupscale_cli
from helpers import MODELS, save_mlp
from mupscale_cli.recipe import load_recipe, model_types, recipe_files
from mupscale_cli.verification import VerifyOptions
from mupscale_cli.widening import widen

EXACT = VerifyOptions(dtype="float64")
# Axes that an architecture ties together move together; elsewhere each moves alone.
TOGETHER = {
    "GPT2": [("embed", "h"), ("embed", "d"), ("ffn",)],
    "Bert": [("embed", "h"), ("embed", "d"), ("ffn",)],
    "GPTNeoX": [("embed", "h"), ("ffn",)],
    "StableLm": [("embed", "kv"), ("embed", "g"), ("ffn",)],
    "Mixtral": [("embed",), ("kv",), ("g",), ("ffn",), ("e",)],
    "ResNet": [],
}
ALONE = [("embed",), ("kv",), ("g",), ("ffn",)]


def single_axes():
    for case in MODELS:
        for axes in TOGETHER.get(case.partition("-")[0], ALONE):
            for factor in (2, 3):
                yield case, dict.fromkeys(axes, factor)
    yield "GPT2-tied", {"embed": 6, "h": 3, "d": 2}


def check(source, tmp_path, factor=None, axes=None):
    widened = widen(source, tmp_path / "wide", factor, axes, verify=EXACT)
    found = widened.verification
    assert found is not None
    assert found.agrees, found
    assert found.max_rel < 1e-12
    assert found.worst_module.max_rel < 1e-12
    return found


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("case", MODELS)
def test_all_axes_together(case, factor, saved, tmp_path):
    found = check(saved(case), tmp_path, factor)
    compared = {comparison.what for comparison in found.comparisons}
    if not case.startswith(("ResNet", "Bert")):
        assert {"logits", "logits of a left-padded batch", "logits of cached generation"} <= compared


@pytest.mark.parametrize(("case", "axes"), [pytest.param(c, a, id=f"{c}-{a}") for c, a in single_axes()])
def test_each_axis_alone(case, axes, saved, tmp_path):
    check(saved(case), tmp_path, axes=axes)


def test_factors_differ_by_axis(saved, tmp_path):
    check(saved("Qwen3-tied"), tmp_path, 2, {"g": 3, "ffn": 4})


@pytest.mark.parametrize("case", ["Llama-tied", "Gemma-tied", "GPT2-tied", "ResNet-basic"])
def test_bfloat16_is_as_exact(case, saved, tmp_path):
    check(saved(case, dtype=torch.bfloat16), tmp_path, 3)


def test_stack_of_linear_layers_without_config(tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def build(config):\n"
        "    sizes = [config['shapes'][f'{i}.weight'] for i in (0, 2, 4)]\n"
        "    layers = [nn.Linear(columns, rows) for rows, columns in sizes]\n"
        "    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])\n"
    )
    source = save_mlp(tmp_path / "net.safetensors")
    for factor in (2, 3):
        options = VerifyOptions(dtype="float64", model=f"{tmp_path / 'net.py'}:build")
        widened = widen(source, tmp_path / f"wide{factor}.safetensors", factor, verify=options)
        assert widened.verification.agrees
        assert widened.verification.max_rel < 1e-12


def test_model_types_belong_to_one_recipe():
    recipes = [load_recipe(file.stem) for file in recipe_files()]
    named = [model_type for recipe in recipes for model_type in recipe.model_types]
    assert len(named) == len(set(named)) == len(model_types())


def test_an_architecture_takes_one_file_and_no_python():
    """OLMo 2 is data: nothing in the package knows its name."""
    sources = list(Path(mupscale_cli.__file__).parent.rglob("*.py"))
    assert sources
    assert not [file for file in sources if "olmo" in file.read_text().lower()]

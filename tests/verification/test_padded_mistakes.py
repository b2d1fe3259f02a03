"""Mistakes in growing to any size, in the words of a recipe and in stored values, are found."""

import json
import math
from fractions import Fraction

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import change_config
from mupscale_cli.tasks.verify import verify
from mupscale_cli.tasks.widen import widen

HALF = Fraction(3, 2)
Q_NORM, K_NORM = "{prefix}layers.*.self_attn.q_norm.weight", "{prefix}layers.*.self_attn.k_norm.weight"
GPT2_NORMS = "{prefix}h.*.ln_{1,2}.{weight,bias}", "{prefix}ln_f.{weight,bias}"
WRONG_WORDS = {
    "queries without the larger scale": (
        "Llama-untied",
        'extends: llama\ntensors:\n  "{prefix}layers.*.self_attn.q_proj.weight": "(kv g d), /embed | #d^0"\n',
        {"d": 2},
    ),
    "queries and keys not compensated": (
        "Qwen3-untied",
        f'extends: qwen3\ntensors:\n  "{Q_NORM}": "d | #d^0.5 rms of o_proj"\n  "{K_NORM}": "d | rms of o_proj"\n',
        {"d": 2},
    ),
    "pairs taken for halves": ("Glm4-untied", "extends: glm\naxes:\n  d: {size: head_dim, rotary: halves}\n", {"d": 2}),
    "halves taken for pairs": (
        "Llama-untied",
        "extends: llama\naxes:\n  d: {size: head_dim, rotary: pairs}\n",
        {"d": 2},
    ),
    "appended instead of spread": (
        "Llama-untied",
        "extends: llama\naxes:\n  d: {size: head_dim, rotary: none}\n",
        {"d": 2},
    ),
    "embedding multiplied by the wrong root": (
        "Gemma2-untied",
        'extends: gemma\ntensors:\n  "{prefix}embed_tokens.weight": "., embed"\n',
        {"embed": HALF},
    ),
    "zeros under LayerNorm": (
        "GPT2-untied",
        "extends: gpt2\ntensors:\n" + "".join(f'  "{name}": "embed | rms"\n' for name in GPT2_NORMS),
        {"embed": HALF, "h": HALF},
    ),
}


@pytest.mark.parametrize("mistake", WRONG_WORDS)
def test_a_wrong_word_is_found_and_nothing_is_written(mistake, saved, tmp_path):
    case, text, axes = WRONG_WORDS[mistake]
    (tmp_path / "wrong.yaml").write_text(text)
    source = saved(case, dtype=torch.float64)
    found = widen(source, tmp_path / "wide", axes=axes, recipe=tmp_path / "wrong.yaml").verification
    assert not found.agrees
    assert found.max_rel > 1e-6
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.yaml"]


def unscaled_gains(tensors):
    for name in tensors:
        if name.endswith("layernorm.weight"):
            tensors[name] /= math.sqrt(2 / 3)


def biased_fresh_units(tensors):
    tensors["transformer.h.0.ln_1.bias"][32:] = 0.5


@pytest.mark.parametrize(
    ("case", "axes", "damage"),
    [
        ("Llama-untied", {"embed": HALF}, unscaled_gains),
        ("GPT2-untied", {"embed": HALF, "h": HALF}, biased_fresh_units),
    ],
)
def test_a_forgotten_value_is_found(case, axes, damage, saved, tmp_path):
    wide = tmp_path / "wide"
    assert widen(saved(case, dtype=torch.float64), wide, axes=axes).verification.max_rel < 1e-13
    tensors = load_file(wide / "model.safetensors")
    damage(tensors)
    save_file(tensors, wide / "model.safetensors")
    found = verify(wide, dtype="float64", only=["function"]).function
    assert not found.agrees
    assert found.max_rel > 1e-3


def test_an_eps_that_is_left_is_found(saved, tmp_path):
    source, wide = saved("Llama-untied", dtype=torch.float64, rms_norm_eps=1e-2), tmp_path / "wide"
    assert widen(source, wide, axes={"embed": HALF}).verification.max_rel < 1e-13
    assert json.loads((wide / "config.json").read_text())["rms_norm_eps"] == pytest.approx(1e-2 * 2 / 3)
    change_config(wide, rms_norm_eps=1e-2)
    found = verify(wide, dtype="float64", only=["function"]).function
    assert not found.agrees
    assert found.max_rel > 1e-4

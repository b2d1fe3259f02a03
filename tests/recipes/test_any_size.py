"""Growing to sizes that are not multiples keeps the function, in float64 on random models of the reference classes."""

import json

import pytest
import torch

from helpers import build
from mupscale_cli.errors import MupscaleError
from mupscale_cli.tasks.options import Size
from mupscale_cli.tasks.planning import plan_widening
from mupscale_cli.tasks.widen import widen

EPS = ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps")
EVERYTHING = {"embed": 72, "ffn": 61, "kv": 3, "g": 3, "d": 24}


def save(case, folder):
    """Save a model whose eps is so large that a wrong one shows."""
    model = build(case, torch.float64)
    for key in EPS:
        if hasattr(model.config, key):
            setattr(model.config, key, 1e-2)
    model.save_pretrained(folder)
    return folder


def grown(case, tmp_path, sizes, **options):
    targets = {axis: Size(size) for axis, size in sizes.items()}
    if options.get("verify", True):
        options["dtype"] = "float64"
    return widen(save(case, tmp_path / "narrow"), tmp_path / "wide", None, targets, **options)


@pytest.mark.parametrize(
    ("case", "sizes"),
    [
        ("Llama-untied", EVERYTHING),
        ("Llama-tied", {"embed": 100}),
        ("Qwen3-tied", EVERYTHING),
        ("Gemma2-tied", EVERYTHING),
        ("Olmo2-untied", EVERYTHING),
        ("Mixtral-untied", EVERYTHING),
        ("GPT2-tied", {"embed": 55, "h": 5, "d": 11, "ffn": 190}),
        ("GPTNeoX-untied", {"embed": 72, "h": 6, "d": 12, "ffn": 50}),
    ],
)
def test_any_size_keeps_the_function(case, sizes, tmp_path):
    verification = grown(case, tmp_path, sizes).verification
    assert verification.agrees, verification
    assert verification.max_rel < 1e-12
    assert verification.worst_module.max_rel < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "sizes"),
    [
        *((f"{name}-untied", {"embed": 76}) for name in ("Qwen3Next", "LaraMini", "KimiLinear", "BailingHybrid")),
        *((name, {"embed": 72, "hg": 9}) for name in ("Bamba-untied", "GraniteMoeHybrid-untied")),
        ("GraniteMoeHybrid-tied", {"hg": 9}),  # a config key takes the copies of the readout
    ],
)
def test_a_norm_behind_an_activation_keeps_its_eps(case, sizes, tmp_path):
    """It shares its key with the norms of the stream, which therefore leave it alone."""
    verification = grown(case, tmp_path, sizes).verification
    assert verification.agrees, verification
    assert verification.max_rel < 1e-12


@pytest.mark.parametrize(
    ("case", "axes", "message"),
    [
        ("Bert-tied", {"embed": Size(72), "h": Size(6)}, "subtracts the mean"),
        ("Llama-untied", {"d": Size(12)}, "whole factors"),
        ("Llama-untied", {"embed": Size(75)}, "not a multiple of num_attention_heads"),
        ("Mixtral-untied", {"experts": Size(6)}, "counts tensors"),
    ],
)
def test_what_cannot_be_exact_is_refused_with_the_reason(case, axes, message, saved):
    with pytest.raises(MupscaleError, match=message):
        plan_widening(saved(case), axes=axes)


def test_the_hint_names_the_axis_that_grows_by_whole_factors(saved):
    with pytest.raises(MupscaleError, match="an eps that the code fixes") as raised:
        plan_widening(saved("JetMoe-untied"), axes={"embed": Size(72)})
    assert "`--axis embed=2`" in raised.value.hint


def test_the_eps_follows_the_fraction_of_copies(tmp_path):
    result = grown("Llama-untied", tmp_path, {"embed": 64}, verify=False)
    assert json.loads((result.output / "config.json").read_text())["rms_norm_eps"] == 1e-2 * 48 / 64

"""Growth to any size, with fresh weights of 0, takes the same optimizer steps as the narrow model."""

from fractions import Fraction

import pytest
from safetensors.torch import load_file, save_file

from cli_runner import run
from mupscale_cli.tasks.verify import verify
from mupscale_cli.tasks.widen import widen
from training import OPTIMIZERS, named_kind, save_training

STEPS, SLOW_STEPS = 8, 20  # a wrong rule shows after two
HALF = Fraction(3, 2)
ATTENTION = {"embed": HALF, "kv": HALF, "d": 2, "ffn": HALF}
FAMILIES = {
    "Llama-untied": ATTENTION,
    "Qwen3-tied": ATTENTION,
    "Gemma2-tied": ATTENTION,
    "Olmo2-untied": ATTENTION,
    "Mixtral-untied": ATTENTION,
    "Mamba2-untied": {"embed": HALF, "hg": HALF},
}
EVERYWHERE = [pytest.param(case, marks=pytest.mark.slow) if case == "Mamba2-untied" else case for case in FAMILIES]


def check(tmp_path, case, optimizer, steps=STEPS, **options):
    source = save_training(tmp_path / "narrow", case, optimizer)
    widen(source, tmp_path / "wide", axes=FAMILIES[case], optimizer_kind=named_kind(optimizer), verify=False, **options)
    training = verify(tmp_path / "wide", dtype="float64", steps=steps, only=["function"]).training
    assert training.agrees, training
    assert training.carried
    assert training.max_rel < 1e-10
    assert training.losses[0][0] != training.losses[-1][0]
    return training


@pytest.mark.parametrize("case", EVERYWHERE)
def test_every_family(case, tmp_path):
    check(tmp_path, case, "adamw", fresh="zero")


@pytest.mark.parametrize(
    "optimizer",
    [name if name in ("lion", "muon") else pytest.param(name, marks=pytest.mark.slow) for name in OPTIMIZERS],
)
def test_every_optimizer(optimizer, tmp_path):
    check(tmp_path, "Llama-untied", optimizer, fresh="zero")


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("case", FAMILIES)
def test_every_family_with_every_optimizer(case, optimizer, tmp_path):
    check(tmp_path, case, optimizer, SLOW_STEPS, fresh="zero")


def test_initial_weights_are_left_out_of_the_steps(tmp_path):
    """They are a perturbation, like noise: the same growth without them takes the narrow model's steps."""
    training = check(tmp_path, "Llama-untied", "adamw", fresh="init")
    assert training.removed == ("initial weights",)
    shown = run("verify", str(tmp_path / "wide"), "--steps", "2").out
    assert "initial weights" in shown.split("relative difference")[0].rsplit("step", 1)[1]


def test_a_wrong_step_of_a_padded_model_is_noticed(tmp_path):
    source = save_training(tmp_path / "narrow", "Llama-untied", "adamw")
    widen(source, tmp_path / "wide", axes=ATTENTION, verify=False, fresh="zero")
    file = tmp_path / "wide" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.mlp.up_proj.weight"][:, 48:] = 1e-3  # fresh units are not zero, as `--fresh zero` says
    save_file(tensors, file)
    training = verify(tmp_path / "wide", dtype="float64", steps=2, only=["function"]).training
    assert training.stored_differences == ("model.layers.0.mlp.up_proj.weight",)

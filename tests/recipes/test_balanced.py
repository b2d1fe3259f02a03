"""Residual streams that grow balanced keep the function, and training with SGD or Muon at unchanged learning rates."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from cli_runner import run
from helpers import build
from mupscale_cli.checkpoints.reading import open_checkpoint
from mupscale_cli.dtypes import TensorSpec
from mupscale_cli.engine.streaming import expand_whole
from mupscale_cli.errors import MupscaleError
from mupscale_cli.optimizers.exact.matrices import ExactMuon
from mupscale_cli.optimizers.hyperparameters import Settings, hyperparameters
from mupscale_cli.optimizers.rules.table import OPTIMIZERS
from mupscale_cli.optimizers.state_plan import StateEntry, plan_state
from mupscale_cli.record.reading import read_record
from mupscale_cli.tasks.options import Size
from mupscale_cli.tasks.planning import plan_widening
from mupscale_cli.tasks.verify import verify
from mupscale_cli.tasks.widen import widen
from mupscale_cli.verification.models import build_reference_model
from training import random_loss

LR = 0.02
EMBED = 48


def grown(case, tmp_path, sizes, **options):
    """Grow a model whose eps is so large that a wrong one shows."""
    model = build(case, torch.float64)
    model.config.rms_norm_eps = 1e-2
    model.save_pretrained(tmp_path / "narrow")
    targets = {axis: Size(size) for axis, size in sizes.items()}
    if options.get("verify", True):
        options["dtype"] = "float64"
    return widen(tmp_path / "narrow", tmp_path / "wide", None, targets, spread="balanced", **options)


@pytest.mark.parametrize(
    ("case", "embed"),
    [
        ("Llama-untied", 72),
        ("Llama-untied", 100),
        ("Llama-tied", 72),
        ("Llama-tied", 96),
        ("Qwen3-tied", 72),
        ("Qwen3-tied", 75),
        ("Gemma2-tied", 72),
        ("Gemma2-tied", 96),
        ("Olmo2-untied", 72),
        ("Olmo2-untied", 75),
    ],
)
def test_balanced_streams_keep_the_function(case, embed, tmp_path):
    verification = grown(case, tmp_path, {"embed": embed, "ffn": 61}).verification
    assert verification.agrees, verification
    assert verification.max_rel < 1e-12
    assert verification.worst_module.max_rel < 1e-12


def losses(path, optimizer, rates):
    """Train a model for ten steps with frozen gains; Muon trains the matrices only."""
    model = build_reference_model(open_checkpoint(path), torch.float64)
    trained = {name: weight for name, weight in model.named_parameters() if weight.dim() > 1}
    kind, settings = {
        "sgd": (torch.optim.SGD, {"momentum": 0.9}),
        "muon": (ExactMuon, {"weight_decay": 0.1}),
    }[optimizer]
    groups = [{"params": [weight], **rates.get(name, {"lr": LR})} for name, weight in trained.items()]
    trainer = kind(groups, **settings)
    found = []
    for step in range(10):
        trainer.zero_grad()
        loss = random_loss(model, torch.Generator().manual_seed(step))
        loss.backward()
        trainer.step()
        found.append(float(loss.detach()))
    return found


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
@pytest.mark.parametrize("embed", [72, 100])
def test_sgd_and_muon_take_the_same_steps_at_the_same_rates(optimizer, embed, tmp_path):
    wide = grown("Llama-untied", tmp_path, {"embed": embed}, verify=False).output
    rates = {}
    if optimizer == "muon":  # its step depends on the shape, too
        found = hyperparameters(read_record(open_checkpoint(wide)), Settings(LR, optimizer, weight_decay=0.1))
        groups = [(name, group) for group in found.groups for name in group.tensors]
        rates = {name: {"lr": group.lr, "weight_decay": group.weight_decay} for name, group in groups}
    expected, actual = losses(tmp_path / "narrow", optimizer, {}), losses(wide, optimizer, rates)
    assert expected[-1] < expected[0]
    assert actual == pytest.approx(expected, rel=1e-10)


def test_hparams_keeps_the_rates_of_sgd_and_says_what_adam_lacks(tmp_path):
    wide = grown("Llama-untied", tmp_path, {"embed": 72}, verify=False).output
    sgd = hyperparameters(read_record(open_checkpoint(wide)), Settings(LR, "sgd"))
    matrices = {group.multipliers.lr for group in sgd.groups if group.is_decayed}
    assert matrices == {1.0}
    assert not any("proj" in warning for warning in sgd.warnings)
    assert any("norm" in warning and "up to 2 times" in warning for warning in sgd.warnings)
    adam = hyperparameters(read_record(open_checkpoint(wide)), Settings(LR, "adamw"))
    (inexact,) = (warning for warning in adam.warnings if f"up to {math.sqrt(2):.3g} times" in warning)
    assert "lm_head" in inexact
    assert "with SGD or Muon or NorMuon or NorMuon+ or Shampoo, one set of values is right for every part" in inexact


def test_every_part_of_verify_knows_balanced_streams(tmp_path):
    wide = grown("Llama-untied", tmp_path, {"embed": 72}, noise=0.05).output
    assert json.loads((wide / "mupscale.json").read_text())["method"]["spread"] == "balanced"
    assert verify(wide, dtype="float64").agrees
    with pytest.raises(MupscaleError, match="only SGD and Muon take the same steps"):
        verify(wide, dtype="float64", steps=2)


@pytest.mark.parametrize("name", ["embed_tokens", "q_proj", "down_proj", "input_layernorm"])
def test_units_without_their_own_share_are_noticed(name, tmp_path):
    """Scale the last units as if all had equally many copies."""
    wide = grown("Llama-untied", tmp_path, {"embed": 72}).output
    tensors = load_file(wide / "model.safetensors")
    for tensor in (tensor for key, tensor in tensors.items() if f"{name}.weight" in key):
        units = tensor if name in ("down_proj", "input_layernorm") else tensor.T
        units[-1] *= 1.01
    save_file(tensors, wide / "model.safetensors", {"format": "pt"})
    found = verify(wide, dtype="float64")
    assert not found.function.agrees
    assert found.weights.differences


def test_twice_the_size_trains_alike_with_every_optimizer(tmp_path):
    wide = grown("Llama-tied", tmp_path, {"embed": 2 * EMBED}, verify=False).output
    assert verify(wide, dtype="float64", steps=5).training.agrees


@pytest.mark.parametrize(
    ("case", "axes", "message"),
    [
        ("GPT2-tied", {"embed": Size(72), "h": Size(6)}, "subtract the mean"),
        ("Llama-untied", {"ffn": Size(90)}, "there is none"),
        ("Llama-untied", {"embed": Size(75)}, "not a multiple of num_attention_heads"),
    ],
)
def test_what_cannot_be_balanced_is_refused_with_the_reason(case, axes, message, saved):
    with pytest.raises(MupscaleError, match=message):
        plan_widening(saved(case), axes=axes, spread="balanced")


def test_a_tensor_is_explained_with_the_copies_of_its_units(tmp_path):
    grown("Llama-untied", tmp_path, {"embed": 72}, verify=False)
    growth = ("--axis", "embed:72", "--spread", "balanced")
    for name, c in (("q_proj", "1 / n(embed)^0.5"), ("embed_tokens", "1 / n(embed)^0.5"), ("input_layernorm", "s")):
        shown = run("widen", str(tmp_path / "narrow"), *growth, "--dry-run", "--tensor", name)
        assert shown.code == 0, shown.err
        assert f"c = {c}" in shown.out
        assert "n(embed) is 1, and 2 for the last 24 units" in shown.out


@pytest.mark.parametrize(("key", "moment"), [("exp_avg", lambda g: g), ("exp_avg_sq", torch.square)])
def test_carried_moments_are_those_of_the_gradients(key, moment, tmp_path):
    """Each unit's moments are scaled by its own number of copies, also those of gains."""
    result = grown("Llama-untied", tmp_path, {"embed": 72}, verify=False)
    narrow, wide = gradients(tmp_path / "narrow"), gradients(result.output)
    entries = [StateEntry(n, key, TensorSpec(f"{n}.{key}", "F64", tuple(g.shape))) for n, g in narrow.items()]
    planned = plan_state(result.plan, entries, dict.fromkeys(narrow, OPTIMIZERS["adamw"]))
    assert len(planned) == len(narrow)
    for state in planned:
        carried, expected = expand_whole(state.tensor, moment(narrow[state.parameter])), moment(wide[state.parameter])
        assert float((carried - expected).abs().max() / expected.abs().max()) < 1e-12, state.parameter


def gradients(path):
    model = build_reference_model(open_checkpoint(path), torch.float64)
    random_loss(model, torch.Generator().manual_seed(0)).backward()
    return {name: weight.grad for name, weight in model.named_parameters()}

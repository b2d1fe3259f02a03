"""Every method of growing: its promises, the optimizer state, and the options that it refuses."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from cli_runner import run
from helpers import MLP_MODULE, build, save_model
from mupscale_cli.checkpoints.reading import open_checkpoint
from mupscale_cli.dtypes import TensorSpec
from mupscale_cli.engine.random import noise_key
from mupscale_cli.engine.streaming import expand_whole
from mupscale_cli.errors import CheckpointError, PlanError, VerifyError
from mupscale_cli.optimizers.rules.table import OPTIMIZERS
from mupscale_cli.optimizers.state_plan import StateEntry, plan_state
from mupscale_cli.plan.methods import METHODS, make_method
from mupscale_cli.tasks.planning import plan_widening
from mupscale_cli.tasks.verify import verify
from mupscale_cli.tasks.widen import widen
from mupscale_cli.verification.models import build_reference_model
from training import random_loss, save_training

GROWTHS = {
    "mupscale": [],
    "mupscale-free": ["--noise", "0.1"],
    "mupscale-preserving": ["--noise", "0.1", "--noise-mode", "preserving"],
    "net2net": ["--method", "net2net", "--seed", "3"],
    "net2net-preserving": ["--method", "net2net", "--noise", "0.1", "--noise-mode", "preserving"],
    "hyperclone": ["--method", "hyperclone"],
    "hyperclone-noisy": ["--method", "hyperclone", "--snr", "10"],
    "warmstart": ["--method", "warmstart", "--shrink", "0.5"],
}
EQUAL = {name for name in GROWTHS if name != "warmstart" and not name.endswith("-free")}


@pytest.fixture
def source(request, tmp_path, saved):
    """A checkpoint of one of four kinds, and the options to verify it with."""
    if request.param != "mlp":
        return str(saved(request.param)), []
    module = tmp_path / "net.py"
    module.write_text(MLP_MODULE)
    generator = torch.Generator().manual_seed(0)
    sizes = {"0": (20, 5), "2": (16, 20), "4": (3, 16)}
    tensors = {f"{i}.weight": torch.randn(shape, generator=generator) for i, shape in sizes.items()}
    tensors |= {f"{i}.bias": torch.randn(shape[0], generator=generator) for i, shape in sizes.items()}
    save_file(tensors, tmp_path / "net.safetensors")
    return str(tmp_path / "net.safetensors"), ["--model", f"{module}:build"]


@pytest.mark.parametrize("growth", GROWTHS)
@pytest.mark.parametrize(
    "source",
    ["Llama-untied", "ResNet-basic", "mlp", pytest.param("GPT2-tied", marks=pytest.mark.slow)],
    indirect=True,
)
def test_every_method_keeps_its_promise(source, growth, tmp_path):
    """Widen by 3 and verify: methods that keep the function give equal models, all others the planned bits."""
    path, model = source
    wide = tmp_path / ("wide.safetensors" if model else "wide")
    result = run("widen", path, "-o", str(wide), "--factor", "3", *GROWTHS[growth], *model, "--json")
    assert result.code == 0, result.err
    record = json.loads(result.out)["verification"]["function"]
    assert record["agrees"]
    assert record["keeps_function"] == (growth in EQUAL)
    worst = max(comparison["max_rel"] for comparison in record["comparisons"])
    if "noise" in growth or growth.endswith(("-preserving", "-noisy")):
        assert 1e-12 < worst < 1e-6  # the last share is rounded to float32
    elif growth in EQUAL:
        assert worst < 1e-12
    else:
        assert worst > 1e-3
    if record["unperturbed"]:
        assert max(comparison["max_rel"] for comparison in record["unperturbed"]["comparisons"]) < 1e-12
    again = run("verify", str(wide), *model, "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["weights"]["differences"] == []


@pytest.mark.parametrize("method", ["mupscale", "net2net", "hyperclone"])
@pytest.mark.parametrize(("case", "factor"), [("Llama-untied", 3), ("GPT2-tied", 2), ("ResNet-basic", 3)])
def test_carried_moments_are_the_gradients_of_the_wide_model(case, method, factor, tmp_path):
    """If some units are copied more often than others, each copy has its own share of the gradient."""
    source = save_model(tmp_path / "narrow", case, dtype=torch.float64)
    made = widen(source, tmp_path / "wide", factor, method=method, seed=1, verify=False)
    models = [build_reference_model(open_checkpoint(path), torch.float64) for path in (source, tmp_path / "wide")]
    for model in models:
        random_loss(model, torch.Generator().manual_seed(0)).backward()
    narrow, wide = (dict(model.named_parameters()) for model in models)
    entries = [StateEntry(name, "exp_avg", TensorSpec(name, "F64", tuple(p.shape))) for name, p in narrow.items()]
    largest = max(float(parameter.grad.abs().max()) for parameter in wide.values())
    for state in plan_state(made.plan, entries, dict.fromkeys(narrow, OPTIMIZERS["lion"])):
        planned = expand_whole(state.tensor, narrow[state.parameter].grad)
        assert (planned - wide[state.parameter].grad).abs().max() < 1e-12 * largest, state.parameter


@pytest.mark.parametrize("method", ["hyperclone", "net2net"])
def test_methods_that_copy_evenly_train_like_the_narrow_model(method, tmp_path):
    """OLMo 2 has a norm over all heads; its feed-forward layer keeps its size, which is an even widening."""
    source = save_training(tmp_path / "narrow", "Olmo2-untied", "adamw")
    widen(source, tmp_path / "wide", 2, {"ffn": 1}, method=method, verify=False)
    found = verify(tmp_path / "wide", dtype="float64", steps=5).training
    assert found.agrees
    assert found.carried
    assert found.max_rel < 1e-12


def test_a_perturbed_model_is_trained_without_its_noise(tmp_path):
    source = save_training(tmp_path / "narrow", "Llama-tied", "adamw")
    widen(source, tmp_path / "wide", 2, noise=0.1, verify=False)
    found = verify(tmp_path / "wide", dtype="float64", steps=5)
    assert found.agrees
    assert found.training.max_rel < 1e-12
    assert found.training.removed == ("noise",)
    assert "wide loss without noise" in run("verify", str(tmp_path / "wide"), "--steps", "1").out


@pytest.mark.parametrize("method", ["net2net", "warmstart"])
def test_methods_that_train_differently_say_so(method, saved, tmp_path):
    widen(saved("Llama-untied"), tmp_path / "wide", 2, method=method, verify=False)
    with pytest.raises(VerifyError, match=f"a model widened by `{method}` does not train like its source"):
        verify(tmp_path / "wide", steps=2)


# What each does ------------------------------------------------------------------------------


def tensors_of(path):
    return load_file(path / "model.safetensors")


def test_hyperclone_repeats_units_end_to_end_with_the_requested_snr(saved, tmp_path):
    source = saved("Llama-untied", hidden_size=96)
    widen(source, tmp_path / "plain", 2, method="hyperclone", verify=False)
    widen(source, tmp_path / "noisy", 2, method="hyperclone", snr=10, verify=False)
    narrow, plain, noisy = tensors_of(source), tensors_of(tmp_path / "plain"), tensors_of(tmp_path / "noisy")
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(plain[name], (narrow[name] / 2).repeat(2, 2))
    left, right = (noisy[name] - plain[name]).chunk(2, dim=1)
    assert torch.allclose(left, -right, atol=1e-7)
    ratio = plain[name].square().mean() / (noisy[name] - plain[name]).square().mean()
    assert 10 * math.log10(ratio) == pytest.approx(10, abs=0.3)


def test_net2net_copies_units_drawn_at_random(saved, tmp_path):
    source = saved("Llama-untied")
    names = ("model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight")
    made = []
    for seed in (0, 0, 1):
        out = tmp_path / str(len(made))
        widen(source, out, None, {"ffn": 2}, method="net2net", seed=seed, verify=False)
        made.append(tensors_of(out))
    narrow = tensors_of(source)
    for name in names:
        assert torch.equal(made[0][name][:40], narrow[name])
        assert torch.equal(made[0][name], made[1][name])
        assert not torch.equal(made[0][name], made[2][name])
    drawn = [(made[0][name][40:, None] == narrow[name]).all(-1).int().argmax(-1) for name in names]
    assert torch.equal(*drawn)  # one map for the axis, in every layer
    assert len(set(drawn[0].tolist())) < 40  # with replacement


@pytest.mark.parametrize("case", ["Llama-untied", "Gemma2-tied"])
def test_warmstart_shrinks_old_units_and_initializes_new_ones(case, saved, tmp_path):
    source = saved(case)
    widen(source, tmp_path / "plain", 2, method="warmstart", shrink=0.5, noise=0.0, verify=False)
    widen(source, tmp_path / "noisy", 2, method="warmstart", shrink=0.5, verify=False)
    narrow, plain, noisy = tensors_of(source), tensors_of(tmp_path / "plain"), tensors_of(tmp_path / "noisy")
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(plain[name][:40, :48], narrow[name] / 2)
    assert not plain[name][40:].any()
    assert not plain[name][:, 48:].any()
    fresh = noisy[name] - plain[name]
    assert float(fresh.std() / (narrow[name].square().mean().sqrt() / 2**0.5)) == pytest.approx(0.5, rel=0.05)
    gain = "model.layers.0.input_layernorm.weight"
    assert torch.equal(noisy[gain][:48], narrow[gain])
    assert set(noisy[gain][48:].tolist()) == {0.0 if case.startswith("Gemma") else 1.0}


def test_the_record_has_the_default_shrink_factor(saved, tmp_path):
    record = widen(saved("Llama-untied"), tmp_path / "w", 2, method="warmstart", verify=False).record
    assert record["method"] == {"name": "warmstart", "shrink": 0.4}
    assert record["perturbation"] == {"size": 0.5, "mode": "free", "scale": "init", "seed": 0, "on": []}


@pytest.mark.parametrize("policy", ["copy", "reset-new", "reset"])
@pytest.mark.parametrize("method", METHODS)
def test_every_state_policy_works_with_every_method(method, policy, tmp_path):
    """For every map, the moments of all copies have the sum that the policy defines."""
    source = save_training(tmp_path / "narrow", "Llama-untied", "adamw")
    widen(source, tmp_path / "wide", 2, method=method, optimizer_policy=policy, verify=False)
    narrow = torch.load(source / "optimizer.pt")["state"]
    wide = torch.load(tmp_path / "wide" / "optimizer.pt")
    names = [name for group in wide["param_groups"] for name in group["param_names"]]
    index = names.index("model.layers.0.mlp.up_proj.weight")
    if policy == "reset":
        assert not wide["state"]
        return
    moment = wide["state"][index]["exp_avg"]
    order = [name for name, _ in build("Llama-untied").named_parameters()]
    before = narrow[order.index("model.layers.0.mlp.up_proj.weight")]["exp_avg"]
    if method == "warmstart":
        assert torch.equal(moment[:40, :48], before)
        assert torch.count_nonzero(moment) == torch.count_nonzero(before)
    elif policy == "reset-new":
        assert torch.count_nonzero(moment) == torch.count_nonzero(before)
    else:
        assert moment.sum() == pytest.approx(float(before.sum()) * 2, rel=1e-9)  # both copies of an input have it


# Weights against the plan ---------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"noise": 0.1}, {"method": "net2net"}])
def test_a_single_flipped_bit_is_located(settings, saved, tmp_path):
    widen(saved("Llama-untied"), tmp_path / "wide", 2, verify=False, **settings)
    assert verify(tmp_path / "wide", only=["weights"]).agrees
    tensors = tensors_of(tmp_path / "wide")
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name].view(torch.int32)[7, 3] ^= 1
    save_file(tensors, tmp_path / "wide" / "model.safetensors", metadata={"format": "pt"})
    assert verify(tmp_path / "wide", only=["weights"]).weights.differences == (
        f"`{name}` differs, first at element (7, 3)",
    )
    result = run("verify", str(tmp_path / "wide"), "--only", "weights")
    assert result.code == 1
    assert f"`{name}` differs, first at element (7, 3)" in result.out


def test_tensors_that_are_missing_added_or_of_another_shape_are_named(saved, tmp_path):
    widen(saved("Llama-untied"), tmp_path / "wide", 2, verify=False)
    tensors = tensors_of(tmp_path / "wide")
    del tensors["lm_head.weight"]
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:5]
    tensors["strange"] = torch.zeros(1)
    save_file(tensors, tmp_path / "wide" / "model.safetensors", metadata={"format": "pt"})
    found = verify(tmp_path / "wide", only=["weights"]).weights.differences
    assert "`strange` is not in the plan" in found
    assert "`lm_head.weight` is missing" in found
    assert "`model.norm.weight` is F32 (5,), expected F32 (96,)" in found


def test_noise_of_another_seed_is_found(saved, tmp_path):
    """Widening with another seed gives another model."""
    widen(saved("Llama-untied"), tmp_path / "wide", 2, noise=0.1, seed=1, verify=False)
    record = tmp_path / "wide" / "mupscale.json"
    record.write_text(record.read_text().replace('"seed": 1', '"seed": 2'))
    assert noise_key(1, "w") != noise_key(2, "w")
    found = verify(tmp_path / "wide")
    assert not found.agrees
    assert len(found.weights.differences) == 16


# Refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "net3net"], "unknown method `net3net`"),
        (["--shrink", "0.5"], "`--shrink` works only with `--method warmstart`, not with `mupscale`"),
        (["--snr", "10"], "`--snr` works only with `--method hyperclone`, not with `mupscale`"),
        (["--method", "warmstart", "--shrink", "2"], "`--shrink` is 2.0, expected a number from 0 to 1"),
        (["--method", "hyperclone", "--snr", "nan"], "`--snr` is nan"),
        (["--method", "hyperclone", "--snr", "9", "--noise", "0.1"], "`--snr` conflicts with"),
        (
            ["--method", "warmstart", "--noise", "1", "--noise-mode", "preserving"],
            "does not work with `--method warmstart`",
        ),
        (["--noise-mode", "preserving"], "`--noise-mode` has no effect without `--noise`"),
        (["--noise", "-1"], "the noise is -1"),
        (["--noise", "1e30"], "a number from 0 to 1000"),
        (["--method", "hyperclone", "--snr", "9", "--noise-mode", "free"], "`--snr` conflicts with"),
        (["--noise", "1", "--noise-scale", "loud"], "unknown `--noise-scale loud`"),
    ],
)
def test_contradicting_options_are_refused(arguments, message, saved, tmp_path):
    result = run("widen", str(saved("Llama-untied")), "-f", "2", "-o", str(tmp_path / "w"), *arguments)
    assert result.code == 2
    assert message in result.err
    assert not (tmp_path / "w").exists()


def test_padding_cannot_add_tensors(saved):
    with pytest.raises(PlanError, match='`method="warmstart"` cannot widen the axis `experts`, which counts tensors'):
        plan_widening(saved("Mixtral-untied"), factor=2, axes={"experts": 2}, method="warmstart")


def test_a_damaged_method_in_the_record_is_an_error(saved, tmp_path):
    widen(saved("Llama-untied"), tmp_path / "wide", 2, noise=0.1, verify=False)
    record = tmp_path / "wide" / "mupscale.json"
    record.write_text(record.read_text().replace('"scale": "spectral"', '"size2": "spectral"'))
    result = run("verify", str(tmp_path / "wide"))
    assert result.code == 2
    assert "is damaged: `perturbation.scale` is missing" in result.err


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"scale": "spectral"', '"scale": 3'),
        ('"name": "mupscale"', '"name": ["mupscale"]'),
        ('"noise": {', '"noise": {"x": "large", '),
        ('"noise": {', '"noise": [], "other": {'),
        ('"verification": null', '"verification": {"agrees": true}'),
        ('"mupscale_version"', '"version"'),
    ],
)
@pytest.mark.parametrize("command", [["inspect"], ["verify", "--only", "weights"], ["hparams", "--lr", "1"]])
def test_hostile_records_never_cause_a_traceback(command, before, after, saved, tmp_path):
    widen(saved("Llama-untied"), tmp_path / "wide", 2, noise=0.1, verify=False)
    record = tmp_path / "wide" / "mupscale.json"
    assert before in record.read_text()
    record.write_text(record.read_text().replace(before, after, 1))
    result = run(command[0], str(tmp_path / "wide"), *command[1:])
    assert result.code in (0, 2)  # some commands do not read the damaged part
    assert result.code == 0 or "error: " in result.err


def test_inspect_shows_the_result_of_the_last_verification(saved, tmp_path):
    widen(saved("Llama-untied"), tmp_path / "wide", 2, method="net2net", seed=4)
    path = str(tmp_path / "wide")
    assert "method net2net, seed 4; verified, largest relative difference" in run("inspect", path).out
    tensors = tensors_of(tmp_path / "wide")
    tensors["lm_head.weight"] *= 2
    save_file(tensors, tmp_path / "wide" / "model.safetensors", metadata={"format": "pt"})
    assert run("verify", path).code == 1
    assert "the last verification FAILED" in run("inspect", path).out


def test_noise_that_overflows_its_type_is_an_error(tmp_path):
    tensors = {f"{i}.weight": torch.full((8, 8), 3e4).half() for i in (0, 2, 4)}
    save_file(tensors, tmp_path / "net.safetensors")
    with pytest.raises(CheckpointError, match=r"with noise, `0\.weight` has values that overflow F16"):
        widen(
            tmp_path / "net.safetensors",
            tmp_path / "w.safetensors",
            2,
            recipe="mlp",
            noise=100.0,
            verify=False,
        )
    assert not (tmp_path / "w.safetensors").exists()


@pytest.mark.parametrize(("name", "hint"), [("hyperclon", "did you mean `hyperclone`"), ("zzz", "known: ")])
def test_an_unknown_method_has_a_hint(name, hint):
    with pytest.raises(PlanError) as error:
        make_method(name)
    assert hint in error.value.hint

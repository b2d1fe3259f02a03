"""Test the proxy of a large model."""

import json
from io import StringIO
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from rich.live import Live
from safetensors.torch import load_file, save_file

from cli_runner import run
from mupscale_cli.checkpoints.reading import open_checkpoint
from mupscale_cli.cli.sweep_view import live_events
from mupscale_cli.errors import SweepError
from mupscale_cli.plan import Request
from mupscale_cli.sweep.proxy import ProxyRequest, make_proxy, narrowed_config, usual_ratio
from mupscale_cli.sweep.settings import Training
from mupscale_cli.tasks.planning import choose_recipe, plan_widening
from mupscale_cli.tasks.widen import widen
from sweeps import OWN, SHORT, sweep, words
from training import save_state


def narrowed(directory, ratio, axes=None):
    source = open_checkpoint(directory)
    recipe = choose_recipe(source)
    return source.config, narrowed_config(source, recipe, Request(ratio, axes or {}))


def test_narrowed_config_divides_widths_by_the_ratio(saved):
    config, narrow = narrowed(saved("Llama-tied"), 2)
    for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
        assert narrow[name] * 2 == config[name]
    for name in ("head_dim", "vocab_size", "num_hidden_layers"):
        assert narrow[name] == config[name]


def test_axis_of_factor_1_is_not_narrowed(saved):
    _, narrow = narrowed(saved("Llama-tied"), 2, {"ffn": 1})
    assert (narrow["hidden_size"], narrow["intermediate_size"]) == (24, 40)


def test_indivisible_config_is_refused(saved, tmp_path):
    with pytest.raises(SweepError, match="`num_key_value_heads` is 2, which cannot be divided by 4"):
        narrowed(saved("Llama-tied"), 4)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("OPT-projected", "the proxy does not widen to the checkpoint: `model.decoder.embed_tokens.weight`"),
        ("CodeGen-untied", "the proxy's config does not widen to the checkpoint's"),
        ("Lfm2-untied", "`intermediate_size` grows from 40 to 512, which is not an integer ratio"),
    ],
)
def test_model_without_a_proxy_is_refused(case, message, saved, tmp_path):
    result = run("sweep", str(saved(case)), *OWN, "--proxy", "2", "-o", str(tmp_path / "s"))
    assert result.code == 2
    assert message in result.err
    assert "train a smaller model yourself" in result.err
    assert not (tmp_path / "s" / "proxy").exists()


@pytest.mark.parametrize("case", ["GPT2-tied", "Gemma2-tied", "Mixtral-untied", "GPTNeoX-untied"])
def test_proxy_widens_to_the_shapes_of_the_checkpoint(case, saved, tmp_path):
    source = open_checkpoint(saved(case))
    make_proxy(source, ProxyRequest(2, {}, None, None, 1e-3, 0), Training(), None, tmp_path / "proxy", lambda *_: None)
    plan = plan_widening(tmp_path / "proxy", factor=2)
    shapes = {tensor.target.name: tensor.target.shape for tensor in plan.tensors}
    assert shapes == {spec.name: spec.shape for spec in source.specs}


def test_the_usual_proxy_is_the_narrowest_whose_sizes_divide(saved):
    source = open_checkpoint(saved("Llama-tied"))
    assert usual_ratio(source, None, None, {}) == 2  # it has two heads
    assert usual_ratio(open_checkpoint(saved("Lfm2-untied")), None, None, {}) is None


def test_a_sweep_takes_a_narrower_base_and_the_targets_factor_and_says_what_it_costs(tokens, tmp_path, saved):
    arguments = (saved("Llama-untied"), "--data", tokens, *words("--target 3 --lr 1e-3,2e-3 --noise 0.1"), *SHORT)
    result = sweep(*arguments, "-o", tmp_path / "s", "--no-picture")
    document = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert (document["proxy"]["ratio"], document["proxy"]["steps"]) == (2, 30)
    assert document["grid"]["factors"] == [3]
    cost = document["cost"]
    # Every matrix but the readout, which grows by one factor, has 4 times the weights with the checkpoint in place of
    # the proxy. The proxy's training of 30 steps is added to two trials of 3 steps.
    config = open_checkpoint(saved("Llama-untied")).config
    trial, target = cost["trials"][0]["flops_per_token"], cost["target"]
    readout = 2 * 3 * config["hidden_size"] * config["vocab_size"]
    assert trial == (target - readout) / 4 + readout / 2
    assert cost["saved"] == pytest.approx(target / trial)
    assert cost["total"] == pytest.approx((2 * trial * 3 + cost["proxy"] * 30) / (target * 3))
    assert f"takes {cost['saved']:.3g} times the operations of one of these" in result.out


@pytest.mark.parametrize(("taken", "is_far"), [(21, True), (20, False)])
@pytest.mark.parametrize("kind", ["torch", "safetensors"])
def test_a_proxy_far_less_trained_than_the_checkpoint_is_warned_of(kind, taken, is_far, tokens, tmp_path):
    narrow = save_state(tmp_path / "narrow", kind)
    set_steps(narrow, taken)
    result = sweep(
        narrow,
        "--data",
        tokens,
        *words("--proxy 2 --proxy-steps 2 --lr 1e-3 --noise 0.1 -f 2 --no-picture"),
        "-o",
        tmp_path / "s",
        *SHORT,
    )
    document = json.loads((tmp_path / "s" / "sweep.json").read_text())
    warning = f"trained for 2 steps and the checkpoint for {taken}, "
    assert [warning in text for text in document["recommendation"]["warnings"]].count(True) == is_far
    assert (warning in result.out, "`--proxy-steps` to 3 or more" in result.out) == (is_far, is_far)


def set_steps(checkpoint, steps):
    """Give a checkpoint an optimizer state whose step counters hold this number."""
    if (file := checkpoint / "optimizer.pt").exists():
        state = torch.load(file)
        for entries in state["state"].values():
            entries["step"].fill_(steps)
        torch.save(state, file)
        return
    file = checkpoint / "optimizer.safetensors"
    tensors = {name: t.fill_(steps) if name.endswith(".step") else t for name, t in load_file(file).items()}
    save_file(tensors, file, metadata={"optimizer": "adamw"})


def test_the_proxys_loss_stays_on_a_terminal():
    console = Console(file=StringIO(), force_terminal=True, width=60, highlight=False)
    with Live(console=console, refresh_per_second=0.1, transient=True) as live:
        events = live_events(live)
        events.phase("creating the proxy")
        events.note("the proxy ends with a loss of 2.5")
        events.phase("something else")
    screen, stays = console.file.getvalue().rpartition("the proxy ends with a loss of 2.5")[::2]
    assert screen
    # The live view is erased line by line, upwards: never as far as the note.
    assert stays.count("\x1b[1A") <= stays.count("\n")


def test_hparams_map_through_proxy_and_widening(tokens, tmp_path, saved):
    """The large model's rates are the proxy's, divided by the factors of both widenings."""
    narrow = saved("Llama-untied")
    result = sweep(
        narrow,
        "--data",
        tokens,
        *words("--proxy 2 --proxy-steps 2 --lr 1e-3,2e-3 --noise 0.1 -f 2"),
        "-o",
        tmp_path / "s",
        "--no-picture",
        *SHORT,
    )
    assert "(2 training steps), for " in result.err
    assert (tmp_path / "s" / "proxy" / "optimizer.pt").is_file()
    assert open_checkpoint(tmp_path / "s" / "proxy").config["hidden_size"] == 24
    document = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert (document["proxy"]["ratio"], document["proxy"]["steps"]) == (2, 2)
    widen(narrow, tmp_path / "wide", factor=2, verify=False)
    groups = json.loads(run("hparams", str(tmp_path / "wide"), "--from-sweep", str(tmp_path / "s"), "--json").out)
    by_name = {name: group for group in groups["groups"] for name in group["tensors"]}
    lr = document["recommendation"]["lr"]
    assert by_name["model.layers.0.mlp.up_proj.weight"]["lr"] == pytest.approx(lr / 4)
    assert by_name["model.layers.0.mlp.up_proj.weight"]["eps"] == pytest.approx(1e-8 / 4)
    assert by_name["model.embed_tokens.weight"]["lr"] == pytest.approx(lr)
    assert by_name["model.embed_tokens.weight"]["clip_weight"] == 4
    lines = run("hparams", str(tmp_path / "wide"), "--from-sweep", str(tmp_path / "s"), "--format", "loop").out
    assert f"'lr': {lr / 4!r}" in lines  # scaled groups have the factors of one widening
    names = sorted(by_name)
    loaded = SimpleNamespace(param_groups=[{"lr": 9, "eps": 9, "param_names": [name]} for name in names])
    setting = lines[lines.index("import re") : lines.index("mupscale.clip_grad_norm_")]
    exec(setting, {"optimizer": loaded})  # noqa: S102 (what a user pastes)
    for name, group in zip(names, loaded.param_groups, strict=True):  # not what the loaded state had
        wanted = {"lr": by_name[name]["lr"], "initial_lr": by_name[name]["lr"], "eps": by_name[name]["eps"]}
        assert group.items() >= wanted.items(), name

"""The hyperparameters of the narrow run come from the optimizer state that was widened."""

import json
import re
import shutil

import pytest
import torch
import transformers

import mupscale
from cli_runner import run
from mupscale_cli.tasks.widen import widen
from mupscale_cli.verification.precision import everything_in


@pytest.fixture
def narrow(saved, tmp_path):
    """Return a function that saves a narrow checkpoint with the state of an optimizer after one step."""

    def save(make, schedule=None):
        folder = shutil.copytree(saved("Llama-tied"), tmp_path / "narrow")
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        optimizer = make(dict(model.named_parameters()))
        scheduler = schedule and schedule(optimizer)
        tokens = torch.ones(1, 4, dtype=torch.long)
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
        if scheduler:
            scheduler.step()
        torch.save(optimizer.state_dict(), folder / "optimizer.pt")
        return widen(folder, tmp_path / "wide", 2, verify=False).output

    return save


def grouped(named, **settings):
    """Return groups of which the first decays: the matrices of attention."""
    chosen = {name: "self_attn" in name for name in named}
    return [
        {
            "params": [p for n, p in named.items() if chosen[n] == decays],
            "param_names": [n for n in named if chosen[n] == decays],
            "weight_decay": 0.2 * decays,
            **settings,
        }
        for decays in (True, False)
    ]


def document(*arguments):
    result = run("hparams", *map(str, arguments), "--json")
    assert result.code == 0, result.err
    return json.loads(result.out)


def test_every_value_comes_from_the_state_and_says_so(narrow):
    wide = narrow(
        lambda named: torch.optim.AdamW(grouped(named), lr=3e-3, betas=(0.8, 0.9), eps=1e-6),
        lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
    )
    found = document(wide)
    assert found["optimizer"] == "adamw"
    sources = found["narrow"].pop("sources")
    assert found["narrow"] == {"lr": 3e-3, "weight_decay": 0.2, "eps": 1e-6, "betas": [0.8, 0.9]}  # before the schedule
    assert set(sources.values()) == {"state"}
    for group in found["groups"]:
        for name in group["tensors"]:
            assert bool(group["weight_decay"]) == ("self_attn" in name), name
    shown = run("hparams", str(wide)).out
    assert "AdamW, lr 0.003, weight decay 0.2, eps 1e-06, betas 0.8, 0.9 (from optimizer.pt)" in shown


def test_options_come_first(narrow):
    wide = narrow(lambda named: torch.optim.AdamW(grouped(named), lr=3e-3))
    found = document(wide, "--lr", "1", "--decay", "none")
    assert (found["narrow"]["lr"], found["narrow"]["eps"]) == (1, 1e-8)
    assert found["narrow"]["sources"]["lr"] == found["narrow"]["sources"]["decay"] == "option"
    assert {group["weight_decay"] for group in found["groups"]} == {0}


def test_the_table_is_that_of_the_run_s_optimizer(narrow):
    wide = narrow(lambda named: torch.optim.SGD(grouped(named), lr=0.1, momentum=0.9))
    found = document(wide)
    assert found["optimizer"] == "sgd"
    assert found["formulas"]["lr"] == "lr x m c^2"
    other = run("hparams", str(wide), "--optimizer", "adamw")
    assert (other.code, "learning rate of the narrow run is missing" in other.err) == (2, True)
    assumed = run("hparams", str(wide), "--optimizer", "adamw", "--lr", "1e-3").out
    assert "AdamW, lr 0.001 (given); weight decay 0, eps 1e-08 (assumed)" in assumed


def test_several_learning_rates_are_named(narrow):
    def make(named):
        groups = grouped(named)
        groups[1]["lr"] = 1e-3
        return torch.optim.AdamW(groups, lr=3e-3)

    refused = run("hparams", str(narrow(make)))
    assert refused.code == 2
    assert "the groups of the state have several (`0.003`, `0.001`)" in refused.err


def test_of_several_optimizers_one_is_named(narrow):
    wide = narrow(lambda named: torch.optim.AdamW(grouped(named), lr=3e-3))
    record = json.loads((wide / "mupscale.json").read_text())
    record["optimizer_state"]["groups"][0] |= {"optimizer": "sgd", "settings": {"lr": 0.1, "weight_decay": 0.3}}
    (wide / "mupscale.json").write_text(json.dumps(record))
    refused = run("hparams", str(wide))
    assert refused.code == 2
    assert "several optimizers: `adamw`, `sgd`" in refused.err
    assert "`--format loop`" in refused.err
    lines = run("hparams", str(wide), "--format", "loop").out
    assert (
        lines.index("torch.optim.AdamW(..., lr=0.003")
        < lines.index("torch.optim.SGD(..., lr=0.1")
        < lines.index("scale_")
    )
    assert lines.count("mupscale.scale_optimizer(") == lines.count("load_state_dict(") == 1
    assert run("hparams", str(wide), "--format", "loop", "--lr", "1").code == 2  # of which one?
    assert document(wide, "--optimizer", "sgd")["narrow"]["lr"] == 0.1
    assert document(wide, "--optimizer", "adamw")["narrow"]["lr"] == 3e-3


def two_optimizers(model):
    """Return AdamW for the matrices and SGD with momentum for the rest."""
    named = dict(model.named_parameters())
    matrices = [name for name in named if named[name].dim() > 1]
    rest = [name for name in named if named[name].dim() == 1]
    return tuple(
        make([{"params": [named[name] for name in names], "param_names": names}])
        for make, names in (
            (lambda groups: torch.optim.AdamW(groups, lr=3e-3, weight_decay=0.1), matrices),
            (lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9), rest),
        )
    )


def test_the_lines_for_several_optimizers_continue_with_each_of_them(saved, tmp_path):
    """Executed as the comments above the lines say: each optimizer is scaled and loaded, all are clipped together."""
    folder = shutil.copytree(saved("Llama-tied"), tmp_path / "narrow")
    tokens = torch.arange(12).reshape(2, 6)
    max_norm = 0.05  # so low that every step is clipped

    def losses(model, optimizers, clip, steps):
        for _ in range(steps):
            with everything_in(torch.float64):
                loss = model(tokens, labels=tokens).loss
                loss.backward()
            assert clip() > max_norm
            for each in optimizers:
                each.step()
                each.zero_grad()
            yield loss.item()

    def load(path):
        return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)

    narrow = load(folder)
    optimizers = two_optimizers(narrow)

    def clip():
        return torch.nn.utils.clip_grad_norm_(narrow.parameters(), max_norm)

    list(losses(narrow, optimizers, clip, 2))
    narrow.save_pretrained(folder)
    torch.save([each.state_dict() for each in optimizers], folder / "optimizer.pt")
    wide = widen(folder, tmp_path / "wide", 3, verify=False).output
    expected = list(losses(narrow, optimizers, clip, 4))

    lines = run("hparams", str(wide), "--format", "loop").out
    setting, _, clipping = lines.partition("mupscale.clip_grad_norm_(optimizer, max_norm)")
    (together,) = re.findall(r"^# `(mupscale\.clip_grad_norm_\(\[.*\))`$", lines, re.MULTILINE)
    assert clipping.startswith("  # in place of torch's")
    model = load(wide)
    first, second = two_optimizers(model)
    for optimizer, state in zip((first, second), torch.load(wide / "optimizer.pt"), strict=True):
        exec(setting, {"optimizer": optimizer, "model": model, "state": state})  # noqa: S102 (what a user pastes)
    names = {"mupscale": mupscale, "first": first, "second": second, "max_norm": max_norm}
    continued = list(losses(model, (first, second), lambda: eval(together, names), 4))  # noqa: S307 (the same)
    assert continued == pytest.approx(expected, rel=1e-12)
    assert abs(expected[-1] - expected[0]) > 1e-6  # the model learns


def test_defaults_are_those_of_the_optimizer(wide):
    found = document(wide.output, "--lr", "1", "--optimizer", "adagrad")
    assert found["narrow"]["eps"] == 1e-10
    assert found["narrow"]["sources"]["eps"] == "default"


@pytest.mark.parametrize(
    "make",
    [
        lambda named: torch.optim.Adafactor(named.values(), lr=0.02, eps=(1e-9, 1e-3)),
        lambda named: transformers.Adafactor(named.values(), lr=0.02, relative_step=False, scale_parameter=False),
    ],
)
def test_a_pair_of_epsilons_is_no_eps(make, narrow):
    wide = narrow(make)
    found = document(wide)["narrow"]
    assert (found["lr"], found["eps"]) == (0.02, None)
    assert re.search(r"eps=\(1e-\d+, 0\.001\)", run("hparams", str(wide), "--format", "loop").out)


def test_an_optimizer_that_computes_its_own_rate_needs_none(narrow):
    """Its steps are as long as the weights times a rate that depends on the number of the step."""
    wide = narrow(lambda named: transformers.Adafactor(named.values(), scale_parameter=True, relative_step=True))
    found = document(wide)
    assert found["narrow"]["lr"] is None
    assert {group["lr"] for group in found["groups"]} == {None}
    assert found["formulas"].keys().isdisjoint({"lr"})
    assert "lr=None" in run("hparams", str(wide), "--format", "loop").out
    assert "its own" in run("hparams", str(wide)).out
    refused = run("hparams", str(wide), "--optimizer", "adamw")
    assert (refused.code, "learning rate of the narrow run is missing" in refused.err) == (2, True)


def test_the_rate_follows_the_settings_of_the_state(narrow):
    """With `scale_parameter`, Adafactor's rate is relative to the weights and stays."""
    wide = narrow(
        lambda named: transformers.Adafactor(named.values(), lr=0.02, relative_step=False, scale_parameter=True)
    )
    found = document(wide)
    assert {group["lr"] for group in found["groups"]} == {0.02}
    assert found["formulas"]["lr"] == "lr"


def test_options_still_hold_after_the_lines_load_the_state(narrow):
    wide = narrow(lambda named: torch.optim.AdamW(grouped(named), lr=3e-3))
    options = ("--lr", "0.01", "--eps", "1e-6")
    text = run("hparams", str(wide), *options, "--format", "loop").out
    model = transformers.AutoModelForCausalLM.from_pretrained(wide)
    optimizer = torch.optim.AdamW(grouped(dict(model.named_parameters())), lr=0.01, eps=1e-6)
    given = {"optimizer": optimizer, "model": model, "state": torch.load(wide / "optimizer.pt"), "max_norm": 1.0}
    exec(text, given)  # noqa: S102 (what a user would paste)
    expected = {name: group for group in document(wide, *options)["groups"] for name in group["tensors"]}
    for group in optimizer.param_groups:
        for name in group["param_names"]:
            assert {key: group[key] for key in ("lr", "eps", "weight_decay")} == {
                key: pytest.approx(expected[name][key]) for key in ("lr", "eps", "weight_decay")
            }
    assert "chosen" not in run("hparams", str(wide), "--format", "loop").out  # the state says it all
    assert "do not set `lr`, `eps` as asked for" in run("hparams", str(wide), *options, "--format", "nanogpt").err

"""Adding an optimizer takes one entry in one table, which every command reads."""

import ast
import json
from pathlib import Path

import pytest
import torch

import mupscale_cli
from cli_runner import run
from helpers import build
from mupscale_cli.optimizers.rules.powers import Powers
from mupscale_cli.optimizers.rules.rule import LINEAR, OptimizerRule
from mupscale_cli.optimizers.rules.table import OPTIMIZERS
from training import random_loss

UP = "model.layers.0.mlp.up_proj.weight"
K = 3


class Rooted(torch.optim.Optimizer):
    """A made-up optimizer: steps along d / sqrt(|d| + eps), with an average d of gradients."""

    def __init__(self, params, lr=1e-3, damping=0.9, eps=1e-3, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "damping": damping, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                drift = self.state[parameter].setdefault("drift", torch.zeros_like(parameter))
                drift.lerp_(parameter.grad + group["weight_decay"] * parameter, 1 - group["damping"])
                parameter.sub_(group["lr"] * drift / (drift.abs() + group["eps"]).sqrt())


@pytest.fixture
def added(monkeypatch):
    rule = OptimizerRule(
        title="Rooted",
        state={"drift": LINEAR},
        lr=Powers(c=1.5, m=0.5),  # d / sqrt(|d|) shrinks by sqrt(m c), but must grow by c
        eps=Powers(c=-1, m=-1),
        settings={"lr": 1e-3, "damping": 0.9, "eps": 1e-3, "weight_decay": 0.1},
        marks=(frozenset({"damping"}),),
        class_names={"torchtitan": "Rooted"},
        exact=f"{__name__}.Rooted",
        caveats=("Rooted is made up",),
    )
    monkeypatch.setitem(OPTIMIZERS, rule.name, rule)


@pytest.fixture
def wide(tmp_path):
    """A checkpoint in the middle of training, before and after widening."""
    model = build("Llama-tied", dtype=torch.float64)
    optimizer = Rooted(model.named_parameters(), weight_decay=0.1)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        random_loss(model, generator).backward()
        optimizer.step()
        model.zero_grad()
    model.save_pretrained(tmp_path / "narrow")
    torch.save(optimizer.state_dict(), tmp_path / "narrow" / "optimizer.pt")
    return run("widen", str(tmp_path / "narrow"), "-f", str(K), "-o", str(tmp_path / "wide"), "--no-verify")


def state_of(directory):
    content = torch.load(directory / "optimizer.pt", weights_only=True)
    group = next(group for group in content["param_groups"] if UP in group["param_names"])
    number = group["params"][group["param_names"].index(UP)]
    return group, content["state"][number]["drift"]


@pytest.mark.usefixtures("added")
def test_its_state_and_groups_are_widened(wide, tmp_path):
    assert wide.code == 0, wide.err
    (narrow_group, narrow), (wide_group, drift) = state_of(tmp_path / "narrow"), state_of(tmp_path / "wide")
    c, m = 1 / K, K * K
    torch.testing.assert_close(drift[::K, ::K], narrow / (m * c), rtol=1e-15, atol=0)
    assert wide_group["lr"] == pytest.approx(narrow_group["lr"] * c**1.5 * m**0.5)
    assert wide_group["eps"] == pytest.approx(narrow_group["eps"] / (m * c))
    assert wide_group["weight_decay"] == pytest.approx(narrow_group["weight_decay"] / (m * c * c))


@pytest.mark.usefixtures("added")
def test_both_models_train_alike_with_it(wide, tmp_path):
    assert wide.code == 0, wide.err
    result = run("verify", str(tmp_path / "wide"), "--steps", "5", "--json")
    assert result.code == 0, result.err
    training = json.loads(result.out)["training"]
    assert training["optimizer"].startswith("rooted")
    assert (training["agrees"], training["state_compared"]) == (True, True)


@pytest.mark.usefixtures("added", "wide")
def test_hparams_and_inspect_show_it(tmp_path):
    shown = run("hparams", str(tmp_path / "wide"), "--lr", "1e-3", "--optimizer", "rooted")
    assert "lr x sqrt(m) c^1.5" in shown.out
    assert "Rooted is made up" in shown.out
    titan = run("hparams", str(tmp_path / "wide"), "--lr", "1", "--optimizer", "rooted", "--format", "torchtitan")
    assert "optimizer_name='Rooted'" in titan.out
    explained = run("inspect", str(tmp_path / "wide"), "--tensor", "q_proj").out
    assert "sqrt(m) c^1.5" in next(line for line in explained.splitlines() if line.startswith("rooted"))


def test_without_its_entry_it_is_refused(wide):
    assert wide.code == 2
    assert "`drift`" in wide.err


def test_only_the_table_names_an_optimizer():
    """Any other place would need a change for a new optimizer. Several places have AdamW as a default."""
    package = Path(mupscale_cli.__file__).parent
    names = {rule.name for rule in OPTIMIZERS.values()} - {"adamw"}
    places = {
        f"{file.relative_to(package)}:{node.lineno}"
        for file in package.rglob("*.py")
        if file.parent != package / "optimizers" / "rules"
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.lower() in names
    }
    assert not places

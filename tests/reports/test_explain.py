"""Test explanations: formulas derived from a layout have the plan's values."""

import json

import pytest

from cli_runner import run
from mupscale_cli.architecture.layouts import parse_layout
from mupscale_cli.architecture.loading import load_recipe
from mupscale_cli.errors import PlanError
from mupscale_cli.optimizers.multipliers import multipliers
from mupscale_cli.optimizers.rules.table import OPTIMIZERS
from mupscale_cli.reports.explain import explain_rule, explain_tensor
from mupscale_cli.reports.formulas import Monomial, parts_of
from mupscale_cli.tasks.planning import identity_plan, plan_widening
from mupscale_cli.tasks.source import find_source

CASES = {
    "Llama-tied": {"embed": 4, "kv": 2, "g": 3, "ffn": 2},
    "Qwen3Moe-untied": {"embed": 2, "experts": 3, "mffn": 2},
    "GPT2-tied": {"embed": 6, "h": 3, "d": 2},
    "Gemma3-images": {"text.embed": 4, "vision.h": 2, "vision.embed": 2},
    "Granite-tied": {"embed": 3},
    "DeepseekV3-untied": {"embed": 2, "qr": 3, "kvr": 2},
}


@pytest.mark.parametrize("case", CASES)
def test_formulas_have_the_values_of_the_plan(case, saved):
    """The recipe's layout, axis by axis, and the copy maps give the same numbers."""
    plan = plan_widening(saved(case), axes=CASES[case])
    for tensor in plan.tensors:
        (explanation,) = explain_tensor(plan, tensor.target.name)
        values = {(round(c, 12), m) for c, m in map(explanation.scales, explanation.parts)}
        assert values == {(round(c, 12), m) for c, m in tensor.parts}, tensor.target.name


def test_parts_of_returns_formulas_of_a_layout():
    (queries, others) = parts_of(parse_layout("/embed, [h d@d^-0.5 + h d + h d] | kv^-1"))
    assert str(queries.c) == "1 / (k(kv) k(embed) k(d)^0.5)"
    assert str(others.c) == "1 / (k(kv) k(embed))"
    assert str(others.m) == "k(embed) k(h) k(d)"
    assert queries.c.value({"embed": 3, "d": 4}) == pytest.approx(1 / 6)
    assert str(parts_of(parse_layout("., //hidden"))[0].c) == "1"  # the layer divides by the size itself


def test_monomials_multiply_and_exponentiate():
    c = Monomial({"a": 1}) * Monomial({"b": -1}) ** 2
    assert (str(c), c.value({"a": 3, "b": 2})) == ("k(a) / k(b)^2", 0.75)


@pytest.mark.parametrize(
    ("name", "kinds", "count"),
    [
        ("model.layers.0.self_attn.q_proj.weight", 1, 1),
        ("q_proj", 1, 2),
        ("q_proj.bias", 1, 2),
        ("layers.7.self_attn.q_proj.weight", 1, 2),  # no such layer exists, but equal ones do
        ("model.layers.*.mlp.up_proj", 1, 2),
        ("norm.weight", 1, 1),
    ],
)
def test_end_of_a_name_is_enough(name, kinds, count, saved):
    explanations = explain_tensor(plan_widening(saved("Llama-tied"), factor=2), name)
    assert (len(explanations), sum(len(each.names) for each in explanations)) == (kinds, count)


def test_name_of_no_tensor_or_too_many_is_refused(saved):
    plan = plan_widening(saved("Llama-tied"), factor=2)
    with pytest.raises(PlanError, match="no tensor is named `qproj`") as caught:
        explain_tensor(plan, "qproj")
    assert "`q_proj`" in caught.value.hint
    with pytest.raises(PlanError, match=r'`tensor="layers\.0"` matches 12 kinds of tensors'):
        explain_tensor(plan, "layers.0")


def test_consequences_are_those_that_hparams_computes(saved):
    (explanation,) = explain_tensor(plan_widening(saved("Llama-tied"), factor=4), "norm.weight")
    (part,) = explanation.parts
    by_optimizer = {name: each for each in explanation.consequences(part) for name in each.optimizers}
    assert by_optimizer.keys() == {rule.name for rule in OPTIMIZERS.values() if not rule.matrices_only}
    for name, each in by_optimizer.items():
        expected = multipliers(OPTIMIZERS[name], *explanation.scales(part))
        assert {key: getattr(expected, key) for key in each.formulas} == each.values


def test_every_alternative_of_a_rule_is_explained():
    explanations = explain_rule(load_recipe("llama"), "model.norm.weight")
    assert [(each.when, each.layout) for each in explanations] == [
        ("tied_readout", "embed | embed^-1 rms"),
        ("otherwise", "embed | rms"),
    ]
    assert explanations[0].bare_factor(explanations[0].parts[0]) == ("1 / K", "K")
    assert [each.layout for each in explain_rule(load_recipe("llama"), "k_proj")] == ["(kv d), /embed"]


def test_without_factors_formulas_in_k_are_shown(saved):
    (explanation,) = explain_tensor(identity_plan(find_source(saved("Llama-tied")).checkpoint), "q_proj")
    assert explanation.scales(explanation.parts[0]) is None
    assert explanation.bare_factor(explanation.parts[0]) == ("1 / K", "K^2")


# Command line ---------------------------------------------------------------------------------


def test_dry_run_explains_a_tensor(saved):
    result = run("widen", str(saved("Llama-tied")), "--factor", "4", "--dry-run", "--tensor", "q_proj")
    assert result.code == 0
    for line in ("c = 1 / k(embed) = 1/4", "m = k(kv) k(g) k(embed) = 16", "32x48 -> 128x192", "1/(m c) = 1/4"):
        assert line in result.out
    assert not any(line.endswith(" ") for line in result.out.splitlines())


def test_explanation_as_json(saved):
    line = ("widen", str(saved("Llama-tied")), "--factor", "4", "--dry-run", "--tensor", "q_proj", "--json")
    (explanation,) = json.loads(run(*line).out)["tensors"]
    (part,) = explanation["parts"]
    assert part["coefficient"] == {"formula": "1 / k(embed)", "value": 0.25}
    assert part["multiplicity"]["value"] == 16
    adam = next(each for each in part["hyperparameters"] if "adamw" in each["optimizers"])
    assert adam["lr"] == {"formula": "c", "value": 0.25}


def test_inspect_uses_the_factors_of_a_widened_checkpoint(saved, tmp_path):
    wide = str(tmp_path / "wide")
    assert run("widen", str(saved("Llama-tied")), "-f", "4", "-o", wide, "--no-verify").code == 0
    assert "c = 1 / k(embed) = 1/4" in run("inspect", wide, "--tensor", "q_proj").out
    assert "with `--factor K`: c = 1 / K, m = K^2" in run("inspect", str(saved("Llama-tied")), "-t", "q_proj").out


def test_recipes_show_explains_a_rule(saved):
    shown = run("recipes", "show", "gpt2", "--tensor", "c_attn").out
    assert "times R(d)^0.5 / k(d)" in shown
    assert "part 2 of 2" in shown
    document = json.loads(run("recipes", "show", "gpt2", "--json").out)
    assert document["name"] == "gpt2"
    assert {axis["name"] for axis in document["axes"]} >= {"embed", "h", "d", "ffn"}


def test_tensor_option_needs_dry_run(saved):
    result = run("widen", str(saved("Llama-tied")), "--factor", "4", "--tensor", "q_proj")
    assert (result.code, "--dry-run" in result.err) == (2, True)

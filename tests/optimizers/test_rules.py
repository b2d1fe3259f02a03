"""The table of optimizers: its formulas, and how it infers optimizers from groups and state."""

import inspect
import math
from pathlib import Path

import pytest
import torch

import mupscale_cli
from mupscale_cli.errors import PlanError
from mupscale_cli.optimizers.multipliers import ScaledTensor, multipliers, state_scale, tensor_multipliers
from mupscale_cli.optimizers.rules import (
    NORM_WEIGHT,
    OPTIMIZERS,
    Powers,
    default_settings,
    infer_optimizer,
    optimizer_rule,
    state_kind,
)
from mupscale_cli.verification.optimizers import optimizer_class

K = 4
# Coefficient and multiplicity of muP's kinds of tensors, for one factor K.
HIDDEN, READOUT, EMBEDDING, MU_READOUT = (1 / K, K * K), (1 / K, K), (1, K), (1, K)


@pytest.mark.parametrize(
    ("name", "kind", "lr"),
    [
        ("adamw", HIDDEN, 1 / K),
        ("adamw", READOUT, 1 / K),
        ("adamw", EMBEDDING, 1),
        ("adamw", MU_READOUT, 1),
        ("sgd", HIDDEN, 1),
        ("sgd", READOUT, 1 / K),
        ("sgd", EMBEDDING, K),
        ("lion", HIDDEN, 1 / K),
        ("muon", HIDDEN, 1),
        ("rmsprop", HIDDEN, 1 / K),
        ("adagrad", EMBEDDING, 1),
    ],
)
def test_learning_rates_are_those_of_mup(name, kind, lr):
    assert multipliers(optimizer_rule(name), *kind).lr == pytest.approx(lr)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("kind", [HIDDEN, READOUT, EMBEDDING])
def test_decoupled_decay_keeps_lr_times_wd(name, kind):
    factors = multipliers(optimizer_rule(name), *kind, decoupled=True)
    assert factors.lr * factors.weight_decay == pytest.approx(1)


@pytest.mark.parametrize("kind", [HIDDEN, READOUT, EMBEDDING])
def test_l2_decay_scales_like_the_gradient(kind):
    """G + wd w becomes (g + wd w) / (m c), where w becomes c w."""
    c, m = kind
    assert multipliers(optimizer_rule("sgd"), c, m).weight_decay * c == pytest.approx(1 / (m * c))


def test_state_scales_with_the_gradient():
    c, m = HIDDEN
    assert state_scale("linear", c, m) == 1 / K
    assert state_scale("quadratic", c, m) == 1 / K**2
    assert state_scale("same", c, m) == 1
    assert state_kind("momentum_buffer", {"momentum_buffer"}) == "linear"
    assert state_kind("momentum_buffer", {"momentum_buffer", "square_avg"}) == "same"
    assert state_kind("row_factor", {"row_factor"}) is None


@pytest.mark.parametrize(
    ("optimizer", "name", "decoupled"),
    [
        (torch.optim.AdamW, "adamw", True),
        (torch.optim.Adam, "adam", False),
        (torch.optim.NAdam, "nadam", False),
        (torch.optim.RAdam, "adam", False),
        (torch.optim.SGD, "sgd", False),
        (torch.optim.RMSprop, "rmsprop", False),
        (torch.optim.Adagrad, "adagrad", False),
        (torch.optim.Muon, "muon", True),
    ],
)
def test_groups_reveal_their_optimizer(optimizer, name, decoupled):
    (group,) = optimizer([torch.nn.Parameter(torch.zeros(2, 2))]).state_dict()["param_groups"]
    rule, is_decoupled = infer_optimizer(group, ())
    assert (rule.name, is_decoupled) == (name, decoupled)


def test_unknown_optimizers_are_refused():
    assert infer_optimizer({"lr": 1, "hyperbolic": True}, ()) is None
    with pytest.raises(PlanError, match="did you mean `adam`"):
        optimizer_rule("adamv")


def test_names_of_optimizers_ignore_case_and_have_aliases():
    assert optimizer_rule("AdamW") is optimizer_rule("adamw_torch_fused") is OPTIMIZERS["adamw"]


# Formulas ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("c_power", [-2, -1, -0.5, 0, 1, 1.5, 2])
@pytest.mark.parametrize("m_power", [-1, -0.5, 0, 0.5, 1, 3])
def test_the_text_of_a_formula_agrees_with_its_value(c_power, m_power):
    formula = Powers(c=c_power, m=m_power)
    code = str(formula).replace("^", "**").replace(" ", "*")
    assert formula(0.3, 7) == pytest.approx(eval(code, {"c": 0.3, "m": 7, "sqrt": math.sqrt}))  # noqa: S307 (text from the table)
    assert formula(0.3, 7) * formula.inverse(0.3, 7) == pytest.approx(1)


def test_a_formula_is_printed_with_a_value():
    assert Powers(c=2, m=1).times("lr") == "lr x m c^2"
    assert Powers(c=-1, m=-1).times("eps") == "eps / (m c)"
    assert Powers(c=1, m=-0.5).times("wd") == "wd x c / sqrt(m)"
    assert Powers().times("lr") == "lr"


def test_products_that_cancel_are_exactly_one():
    """With 1/5 and 1/7, rounding the squared coefficient first would leave an error."""
    assert [Powers(c=2, m=1)(1 / k, k * k) for k in (3, 5, 7)] == [1, 1, 1]


def test_a_factor_for_the_shape_keeps_the_kind_of_decay():
    tensor = ScaledTensor("w", ((1 / K, K * K),), (8, 2), (8 * K, 2))
    rule = OPTIMIZERS["muon"]
    decoupled = tensor_multipliers(tensor, rule, True, {})
    assert decoupled.lr == pytest.approx(2 / math.sqrt(4 * K))
    assert decoupled.lr * decoupled.weight_decay == pytest.approx(1)
    assert tensor_multipliers(tensor, rule, False, {}).weight_decay == 1


def test_the_page_theory_has_the_formulas_of_the_table():
    page = (Path(mupscale_cli.__file__).parent / "cli" / "pages" / "theory.md").read_text()
    start = page.index("| | Adam, ")
    heading, _, *rows = (line.strip("|").split("|") for line in page[start : page.index("\n\n", start)].splitlines())
    by_row = {label.strip().lower(): [cell.strip() for cell in cells] for label, *cells in rows}
    checked = set()
    for column, names in enumerate(heading[1:]):
        for rule in (OPTIMIZERS[name] for name in names.lower().replace(" ", "").split(",") if name in OPTIMIZERS):
            expected = {
                "learning rate": rule.lr,
                "eps": rule.eps,
                "decoupled weight decay": rule.formulas(True)["weight_decay"],
                "l2 weight decay": rule.formulas(False)["weight_decay"],
                "squared norm, when clipping": NORM_WEIGHT,
            }
            for row, formula in expected.items():
                text = by_row[row][column]
                code = text.replace("²", "**2").replace("√m", "sqrt(m)").replace(" ", "*")
                value = eval(code, {"c": 0.3, "m": 7, "sqrt": math.sqrt}) if code else None  # noqa: S307 (our own page)
                assert value == (None if formula is None else pytest.approx(formula(0.3, 7))), (rule.name, row)
            checked.add(rule.name)
    assert checked >= {"adam", "adamw", "sgd", "lion", "adagrad", "rmsprop", "muon"}


# Entries ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [rule for rule in OPTIMIZERS.values() if rule.marks], ids=lambda rule: rule.name)
def test_the_settings_and_state_of_an_entry_reveal_its_optimizer(rule):
    assert infer_optimizer(rule.settings, rule.state.keys()) == (rule, rule.decoupled)


@pytest.mark.parametrize("rule", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_the_class_of_an_entry_has_its_settings_and_state(rule):
    optimizer_type = optimizer_class(rule)
    weight = torch.nn.Parameter(torch.ones(2, 2))
    known = inspect.signature(optimizer_type).parameters
    optimizer = optimizer_type([weight], **{key: value for key, value in rule.settings.items() if key in known})
    weight.sum().backward()
    optimizer.step()
    assert optimizer.state[weight].keys() <= {"step", *rule.state}


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ((), "adamw"),
        (("step",), "adamw"),
        (("step", "exp_avg", "exp_avg_sq"), "adamw"),
        (("exp_avg", "exp_avg_sq", "mu_product"), "nadam"),
        (("exp_avg", "exp_inf"), "adamax"),
        (("exp_avg",), "lion"),
        (("momentum_buffer",), "sgd"),
        (("sum",), "adagrad"),
        (("square_avg",), "rmsprop"),
    ],
)
def test_a_state_without_groups_reveals_its_optimizer(keys, name):
    assert default_settings(keys) == OPTIMIZERS[name].settings


def test_state_entries_imply_settings():
    assert default_settings(("exp_avg", "exp_avg_sq", "max_exp_avg_sq"))["amsgrad"]
    settings = default_settings(("square_avg", "grad_avg", "momentum_buffer"))
    assert (settings["centered"], settings["momentum"]) == (True, 0.9)

"""The table of optimizers: its formulas, and how it infers optimizers from groups and state."""

import inspect
import math
from pathlib import Path

import pytest
import torch

import mupscale_cli
from mupscale_cli.errors import PlanError
from mupscale_cli.optimizers.multipliers import ScaledTensor, multipliers, tensor_multipliers
from mupscale_cli.optimizers.rules.powers import NORM_WEIGHT, Powers, Ratios
from mupscale_cli.optimizers.rules.rule import LINEAR, QUADRATIC, SAME
from mupscale_cli.optimizers.rules.table import OPTIMIZERS, optimizer_rule
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


@pytest.mark.parametrize(
    "name", [name for name, rule in OPTIMIZERS.items() if "weight_decay" in rule.settings and rule.decay is None]
)
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
    assert [kind.powers(c, m) for kind in (LINEAR, QUADRATIC, SAME)] == [1 / K, 1 / K**2, 1]


def test_unknown_optimizers_are_refused():
    with pytest.raises(PlanError, match="did you mean `adam`"):
        optimizer_rule("adamv")
    with pytest.raises(PlanError, match="SOAP cannot be carried over: its moments are stored in a basis"):
        optimizer_rule("soap")


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
    assert Powers(c=1, m=0.5, r=-0.5).times("lr") == "lr x sqrt(m) c / sqrt(r)"


def test_sides_of_a_matrix_have_ratios():
    assert Ratios.of((8, 2), (24, 6)) == Ratios(3, 3, 3)
    assert Ratios.of((8, 2), (8, 6)) == Ratios(3, 1, 3)
    assert Ratios.of((5,), (15,)) == Ratios()
    assert Powers(c=1, m=0.5, r=-0.5)(1 / 3, 9, Ratios(3, 3, 3)) == pytest.approx(3**-0.5)


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


@pytest.mark.parametrize("rule", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_the_class_of_an_entry_has_its_settings_and_state(rule):
    optimizer_type = optimizer_class(rule)
    weight = torch.nn.Parameter(torch.ones(2, 2))
    known = inspect.signature(optimizer_type).parameters
    optimizer = optimizer_type([weight], **{key: value for key, value in rule.settings.items() if key in known})
    weight.sum().backward()
    optimizer.step()
    assert optimizer.state[weight].keys() <= {"step", *rule.state}

"""Which optimizer a state belongs to is decided by settings and keys together, and refused if it is not certain."""

import pytest
import torch

from mupscale_cli.errors import CheckpointError, PlanError
from mupscale_cli.optimizers.content import locate_optimizer
from mupscale_cli.optimizers.finding import open_optimizer
from mupscale_cli.optimizers.identity import default_settings, distinctive_keys, identify, identify_all
from mupscale_cli.optimizers.rules.table import OPTIMIZERS

ADAM = ("step", "exp_avg", "exp_avg_sq")
BARE = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
TORCH_2_6 = {**BARE, "amsgrad": False, "foreach": None, "maximize": False, "capturable": False, "fused": None}
APEX_LAMB = {**BARE, "bias_correction": True, "grad_averaging": True, "max_grad_norm": 1.0}


@pytest.mark.parametrize("rule", [rule for rule in OPTIMIZERS.values() if rule.marks], ids=lambda rule: rule.name)
def test_the_settings_and_state_of_an_entry_reveal_its_optimizer(rule):
    kind = identify(rule.settings, rule.state.keys())
    assert (kind.rule.name, kind.decoupled) == (rule.name, rule.decoupled)


@pytest.mark.parametrize("rule", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_every_optimizer_can_be_named(rule):
    kind = identify(rule.settings, rule.state.keys(), [rule.name])
    assert (kind.rule.name, kind.decoupled) == (rule.name, rule.decoupled)


@pytest.mark.parametrize(
    ("optimizer", "name", "decoupled"),
    [
        (torch.optim.AdamW, "adamw", True),
        (torch.optim.Adam, "adam", False),
        (torch.optim.NAdam, "nadam", False),
        (torch.optim.RAdam, "radam", False),
        (torch.optim.SGD, "sgd", False),
        (torch.optim.RMSprop, "rmsprop", False),
        (torch.optim.Rprop, "rprop", False),
        (torch.optim.Adagrad, "adagrad", False),
        (torch.optim.Muon, "muon", True),
    ],
)
def test_groups_reveal_their_optimizer(optimizer, name, decoupled):
    (group,) = optimizer([torch.nn.Parameter(torch.zeros(2, 2))]).state_dict()["param_groups"]
    kind = identify(group, ())
    assert (kind.rule.name, kind.decoupled) == (name, decoupled)


@pytest.mark.parametrize(
    ("settings", "keys", "name", "decoupled"),
    [
        ({**TORCH_2_6, "decoupled_weight_decay": False}, ADAM, "adam", False),
        ({**TORCH_2_6, "weight_decay": 0.0}, ADAM, "adamw", True),  # nothing to decay: both are the same
        ({**BARE, "correct_bias": True}, ADAM, "adamw", True),
        ({**BARE, "use_muon": False}, ADAM, "adamw", True),
        ({"lr": 0.02, "momentum": 0.95, "weight_decay": 0, "use_muon": True}, ("momentum_buffer",), "muon", True),
        ({**BARE, "decouple": True, "foreach": None}, ADAM, "adopt", True),
        ({**BARE, "amsgrad": False, "centered": False}, (*ADAM, "exp_avg_lr_1", "exp_avg_lr_2"), "laprop", True),
        (BARE, (*ADAM, "weight_norm", "adam_norm", "trust_ratio"), "lamb", True),
        (APEX_LAMB, ("exp_avg", "exp_avg_sq"), "fusedlamb", True),
        ({"lr": 1, "kind": "muon", "momentum": 0.95, "ns_steps": 5, "beta2": 0.9}, (), "normuon+", True),
    ],
)
def test_one_key_or_setting_tells(settings, keys, name, decoupled):
    kind = identify(settings, keys)
    assert (kind.rule.name, kind.decoupled) == (name, decoupled)


@pytest.mark.parametrize(
    ("settings", "keys", "candidates"),
    [
        (TORCH_2_6, ADAM, "adamw or adam: its groups do not say whether the weight decay of 0.1 is decoupled"),
        (BARE, ADAM, "adamw or adam or radam or adopt or lamb or fusedlamb or adamepsroot or decoupledadamw"),
        ({}, ADAM, "adamw or .* or adamepsroot or decoupledadamw: a state without groups does not tell"),
        ({}, ("momentum_buffer",), "sgd or muon"),
        ({"lr": 1, "momentum": 0.9, "weight_decay": 0}, ("momentum_buffer",), "sgd or muon"),
    ],
)
def test_what_is_ambiguous_is_refused_with_the_candidates(settings, keys, candidates):
    with pytest.raises(PlanError, match=candidates) as refused:
        identify(settings, keys)
    assert "--optimizer-kind NAME" in refused.value.hint
    assert identify(settings, keys, [candidates.split()[0]]).rule.name == candidates.split()[0]


def test_what_nothing_fits_is_refused():
    with pytest.raises(
        PlanError, match="no known optimizer has parameters with no state and the settings `hyperbolic`"
    ):
        identify({"lr": 1, "hyperbolic": True}, ())
    with pytest.raises(PlanError, match=r"the optimizer is Adadelta.*no single eps"):
        identify({"lr": 1, "rho": 0.9, "eps": 1e-6, "weight_decay": 0}, ("step", "square_avg", "acc_delta"))
    with pytest.raises(PlanError, match="`lion` does not fit parameters with the state `exp_avg`, `exp_"):
        identify(BARE, ADAM, ["lion"])
    with pytest.raises(PlanError, match="`adamw` does not fit"):  # its groups say the contrary
        identify({**TORCH_2_6, "decoupled_weight_decay": False}, ADAM, ["adamw"])


@pytest.mark.parametrize(
    ("settings", "misfits"),
    [
        ({"lr": 0.1, "momentum": 0, "dampening": 0, "weight_decay": 0.0}, "adamw adam lion rmsprop radam sophia-g"),
        ({**BARE, "weight_decay": 0.0}, "sgd muon lion adagrad rmsprop adafactor rprop"),
        ({"lr": 1.0, "rho": 0.9, "eps": 1e-6, "weight_decay": 0}, "adamw sgd adagrad rmsprop lion sophia-g"),
        ({"lr": 0.1, "lr_decay": 0, "eps": 1e-10, "initial_accumulator_value": 0}, "adamw lion rmsprop sgd"),
    ],
)
def test_a_named_optimizer_must_fit_the_settings_before_the_first_step(settings, misfits):
    for name in misfits.split():
        with pytest.raises(PlanError, match=f"`{name}` does not fit parameters with no state and the settings `"):
            identify(settings, (), [name])


def test_what_is_refused_for_good_is_so_before_what_could_be_mended(tmp_path):
    settings = {"lr": 1e-3, "shampoo_beta": None, "precondition_frequency": 10, "params": [0]}
    state = {"state": {0: {"Q": torch.zeros(2, 3).T}}, "param_groups": [settings]}
    torch.save(state, tmp_path / "optimizer.pt")
    with pytest.raises(PlanError, match=r"optimizer\.pt`: the optimizer is SOAP, which cannot be carried over"):
        open_optimizer(tmp_path / "optimizer.pt", None)
    torch.save({**state, "param_groups": [{"lr": 1e-3, "params": [0]}]}, tmp_path / "optimizer.pt")
    with pytest.raises(CheckpointError, match="is not contiguous"):
        open_optimizer(tmp_path / "optimizer.pt", None)
    with pytest.raises(PlanError, match="the optimizer is Kron"):
        identify({"momentum": 0.9, "precondition_lr": 0.1, "pre_conditioner_update_probability": None}, ())


def test_optimizers_under_keys_of_their_own_are_read_together():
    muon, adamw = ({"state": {}, "param_groups": [{"lr": 0.1, "params": [0]}]} for _ in range(2))
    assert locate_optimizer({"muon": muon, "adamw": adamw}, None, "x") == ()
    with pytest.raises(CheckpointError) as refused:
        locate_optimizer({"mine": muon, "weights": {}}, None, "x")
    assert refused.value.hint == "name its key with `--key mine`"


def test_an_insisted_optimizer_has_the_settings_of_the_groups():
    torch_2_7 = {**TORCH_2_6, "decoupled_weight_decay": True}
    for name in ("lamb", "radam", "adopt", "fusedlamb", "adam"):
        with pytest.raises(
            PlanError, match=rf"`{name}` does not fit .* those of adamw \(`decoupled_weight_decay` is Tr"
        ):
            identify(torch_2_7, ADAM, [name])
    assert identify(torch_2_7, ADAM, ["decoupledadamw"]).rule.name == "decoupledadamw"  # nothing marks its groups
    assert identify(BARE, ADAM, ["lamb"]).rule.name == "lamb"  # nothing marks these groups


RADAM = {"lr": 1, "betas": (0.9, 0.9), "eps": 1e-8, "weight_decay": 0.1, "decoupled_weight_decay": True}


@pytest.mark.parametrize("name", ["decoupledadamw", "adamepsroot"])
def test_an_insisted_optimizer_without_marks_has_no_marks_of_others(name):
    with pytest.raises(PlanError, match=f"`{name}` does not fit .* those of radam"):
        identify(RADAM, ADAM, [name])
    with pytest.raises(PlanError, match=f"`{name}` does not fit .* those of lamb"):
        identify({**BARE, "trust_ratio": 1.0}, ADAM, [name])
    assert identify(BARE, ADAM, [name]).rule.name == name
    assert identify(TORCH_2_6, ADAM, [name]).rule.name == name  # its class may inherit from torch's


SGDW = {"lr": 1, "momentum": 0.9, "dampening": 0, "weight_decay": 0.1, "nesterov": False}


def test_groups_that_sgd_and_another_optimizer_may_have_are_refused_where_decay_tells_them_apart():
    """SGDW of torch_optimizer has the groups of torch's SGD of long ago."""
    with pytest.raises(PlanError, match="sgd or of SGDW of torch_optimizer, whose weight decay is another") as refused:
        identify(SGDW, ("momentum_buffer",))
    assert "`--optimizer-kind sgd`" in refused.value.hint
    assert identify(SGDW, ("momentum_buffer",), ["sgd"]).rule.name == "sgd"
    assert identify({**SGDW, "weight_decay": 0}, ("momentum_buffer",)).rule.name == "sgd"
    assert identify({**SGDW, "maximize": False}, ("momentum_buffer",)).rule.name == "sgd"
    with pytest.raises(PlanError, match=r"SGDW of timm, .* `p -= lr wd p`"):
        identify({**SGDW, "maximize": False, "caution": False}, ("momentum_buffer",))


def test_each_group_and_each_parameter_has_its_own_optimizer():
    groups = [({"lr": 0.02, "momentum": 0.95, "use_muon": True}, ["a"]), ({**BARE, "use_muon": False}, ["b", "c"])]
    kinds = identify_all(groups, {"a": {"momentum_buffer": 0}, "b": dict.fromkeys(ADAM)})
    assert kinds.names == ("muon", "adamw")
    assert {name: kind.rule.name for name, kind in kinds.parameters.items()} == {
        "a": "muon",
        "b": "adamw",
        "c": "adamw",
    }
    without = identify_all((), {"a": {"momentum_buffer": 0}, "b": dict.fromkeys(ADAM)}, ["muon", "adamw"])
    assert {name: kind.rule.name for name, kind in without.parameters.items()} == {"a": "muon", "b": "adamw"}


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        (("exp_avg", "exp_avg_sq", "mu_product"), "nadam"),
        (("exp_avg", "exp_inf"), "adamax"),
        (("exp_avg",), "lion"),
        (("sum",), "adagrad"),
        (("square_avg",), "rmsprop"),
        (("step", "z", "exp_avg_sq"), "schedulefreeadamw"),
    ],
)
def test_keys_that_only_one_optimizer_has_suffice(keys, name):
    rule = identify({}, keys).rule
    assert rule.name == name
    assert default_settings(rule, keys) == OPTIMIZERS[name].settings


def test_state_entries_imply_settings():
    assert default_settings(OPTIMIZERS["adamw"], ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"))["amsgrad"]
    settings = default_settings(OPTIMIZERS["rmsprop"], ("square_avg", "grad_avg", "momentum_buffer"))
    assert (settings["centered"], settings["momentum"]) == (True, 0.9)
    assert distinctive_keys(("step", "sum", "master_param")) == {"sum"}


SGD = {"lr": 1, "momentum": 0.9, "dampening": 0, "weight_decay": 0, "nesterov": False, "maximize": False}


@pytest.mark.parametrize(
    ("settings", "keys", "reason"),
    [
        ({**SGD, "trust_coefficient": 1e-3}, ("momentum_buffer",), "the optimizer is LARS"),
        ({**SGD, "trust_coeff": 1e-3}, ("momentum_buffer",), "the optimizer is LARS of timm"),
        ({"lr": 1, "alpha": 0.9, "eps": 1, "centered": False, "lr_in_momentum": True}, (), "is RMSpropTF"),
        ({**BARE, "decoupled_decay": True, **APEX_LAMB}, ADAM, "decays weights outside of its step"),
        ({**BARE, "weight_decouple": True, "rectify": False}, (*ADAM, "trust_ratio"), "adds its eps to norms"),
        ({"lr": 1, "eps1": 1, "eps2": 1}, ("exp_avg_sq_row", "exp_avg_sq_col", "RMS"), "groups lack `eps`"),
        ({**TORCH_2_6, "weight_decouple": True, "fixed_decay": True}, ADAM, "independent of the learning rate"),
    ],
)
def test_variants_with_other_formulas_are_refused(settings, keys, reason):
    """Their entries or groups are those of an optimizer with a rule; following it would be wrong by 1e-5 to 1e-2."""
    with pytest.raises(PlanError, match=reason):
        identify(settings, keys)


def test_the_decay_of_laprop_depends_on_the_implementation():
    keys = (*ADAM, "exp_avg_lr_1", "exp_avg_lr_2")
    authors, timm = (identify(each, keys) for each in ({**BARE, "amsgrad": False, "centered": False}, BARE))
    formulas = [kind.rule.formulas(kind.decoupled)["weight_decay"] for kind in (authors, timm)]
    assert [formula(0.5, 4) for formula in formulas] == [1, 2]


def test_low_rank_optimizers_are_refused_by_name():
    """Their groups have AdamW's `correct_bias`, too."""
    with pytest.raises(PlanError, match=r"the optimizer is APOLLO.*random projections"):
        identify({**BARE, "correct_bias": True, "rank": 1, "scale_type": "tensor", "update_proj_gap": 200}, ADAM)
    with pytest.raises(PlanError, match="the optimizer is GaLore"):
        identify({**BARE, "correct_bias": True, "rank": 1, "update_proj_gap": 200}, ADAM)

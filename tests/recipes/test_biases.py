"""Switches of a config that add or remove biases: a bias has the fate of what its weight returns."""

import pytest
import torch
import transformers

from helpers import MODELS, save_model
from mupscale_cli.tasks.check import check_model
from mupscale_cli.tasks.planning import plan_widening
from small_models import decoders

# Whose biases have rules of their own, not those of a recipe that another type tests.
SWITCHES = [
    ("HYV3-untied", {"attention_bias": True, "mlp_bias": True}),
    ("OlmoHybrid-untied", {"attention_bias": True}),
    ("LaraMini-untied", {"attention_bias": True}),
    ("LongcatFlash-untied", {"attention_bias": True}),
    ("KimiLinear-untied", {"attention_bias": True}),
    ("BailingHybrid-untied", {"attention_bias": True}),
    ("MiMoV2Flash-untied", {"attention_bias": True}),
    ("DeepseekV4-untied", {"mlp_bias": True}),
    ("Dory-untied", {"attention_bias": True, "mlp_bias": True}),
    ("Zaya-tied", {"attention_bias": True}),
    ("HrmText-untied", {"attention_bias": True, "mlp_bias": True}),
    ("BigBird-tied", {"use_bias": False}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "switched"), SWITCHES)
def test_every_axis_with_other_biases(case, switched, tmp_path):
    dtype = torch.float32 if case in decoders.FLOAT32 else torch.float64
    checked = check_model(save_model(tmp_path / "model", case, dtype=dtype, **switched))
    assert checked.passed, (checked.mistakes, [trial for trial in checked.trials if trial.problem])


@pytest.mark.parametrize(
    "case", [case if case == "Dory-untied" else pytest.param(case, marks=pytest.mark.slow) for case in MODELS]
)
def test_every_switch_of_a_bias_is_planned(case, tmp_path):
    _, config_class, settings = MODELS[case]
    config = getattr(transformers, config_class)(**settings).to_dict()
    for key, value in config.items():
        if isinstance(value, bool) and "bias" in key:
            plan_widening(save_model(tmp_path / key, case, **{key: not value}), factor=2)

"""Names of tensors as training leaves them."""

import pytest

from mupscale_cli.architecture.loading import load_recipe
from mupscale_cli.architecture.wrappers import Wrapping, find_wrapping, strip_wrappers

NORM = "model.layers.0.input_layernorm.weight"


@pytest.mark.parametrize(
    "name",
    [
        NORM,
        f"module.{NORM}",
        f"_orig_mod.module.{NORM}",
        f"module.module.{NORM}",
        f"_fsdp_wrapped_module._fpw_module.{NORM}",
        "model.layers.0._fsdp_wrapped_module._checkpoint_wrapped_module.input_layernorm.weight",
        "model._orig_mod.layers.0._forward_module.module.input_layernorm.weight",
    ],
)
def test_wrappers_are_stripped_and_put_back(name):
    wrapping = Wrapping(load_recipe("llama"))
    assert strip_wrappers(name) == wrapping.plain(name) == NORM
    assert wrapping.wrap(NORM, like=name) == name
    assert wrapping.wrap(NORM.replace("0", "7"), like=name) == name.replace("0", "7")
    front = name[: name.index("model.")]
    assert wrapping.wrap("lm_head.weight", like=name) == f"{front}lm_head.weight"
    assert Wrapping(load_recipe("llama"), is_stripped=True).wrap(NORM, like=name) == NORM


@pytest.mark.parametrize("name", ["encoder.module.weight", "submodule.weight", "model.orig_mod.weight"])
def test_names_of_a_model_are_not_wrappers(name):
    assert strip_wrappers(name) == name


@pytest.mark.parametrize(
    ("names", "outer"),
    [
        ((NORM, "lm_head.weight"), ""),
        ((f"net.{NORM}", "net.lm_head.weight"), "net."),
        ((f"module.policy.net.{NORM}", "module.policy.net.lm_head.weight"), "policy.net."),
        ((f"model.{NORM}", "model.lm_head.weight"), "model."),
        ((f"net.{NORM}", "critic.weight"), ""),  # several models: no rule is for these names
        (("unknown.weight",), ""),
    ],
)
def test_a_prefix_of_all_names_that_no_rule_knows_is_the_module_around_the_model(names, outer):
    wrapping = find_wrapping(load_recipe("llama"), names)
    assert wrapping.outer == outer
    if outer:
        assert wrapping.plain(names[0]) == wrapping.plain(NORM) == NORM
        assert wrapping.wrap(NORM, like=names[0]) == names[0]

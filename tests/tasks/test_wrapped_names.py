"""Checkpoints whose tensors have the names that training wrapped around the model's own."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import change_tensors, save_model
from mupscale_cli.errors import PlanError
from mupscale_cli.tasks.verify import verify
from mupscale_cli.tasks.widen import widen

LAYER = ".layers.1."
WRAPPED = {
    "compiled": lambda name: f"_orig_mod.{name}",
    "distributed": lambda name: f"module._orig_mod.{name}",
    "checkpointed": lambda name: name.replace(LAYER, f"{LAYER}_checkpoint_wrapped_module."),
    "sharded": lambda name: f"_fsdp_wrapped_module.{name.replace(LAYER, f'{LAYER}_fsdp_wrapped_module.')}",
    "lightning": lambda name: f"model.{name}",
    "nested": lambda name: f"module.policy.net.{name}",
}


def renamed(directory, rename):
    return change_tensors(directory, lambda tensors: {rename(name): value for name, value in tensors.items()})


@pytest.mark.parametrize("how", WRAPPED)
def test_wrapped_names_are_kept_and_everything_else_is_as_without_them(how, tmp_path):
    rename = WRAPPED[how]
    plain, wrapped = (save_model(tmp_path / name, "Llama-tied") for name in ("plain", "wrapped"))
    renamed(wrapped, rename)
    outputs = {}
    for clean_names in (False, True):
        for source in (plain, wrapped):
            out = tmp_path / f"{source.name}-{clean_names}"
            widen(source, out, 2, noise=0.1, tie="untie", clean_names=clean_names, verify=False)
            outputs[source.name, clean_names] = load_file(out / "model.safetensors")
    expected = outputs["plain", False]
    for clean_names, named in ((False, rename), (True, str)):
        found = outputs["wrapped", clean_names]
        assert found.keys() == {named(name) for name in expected}
        assert all(torch.equal(found[named(name)], value) for name, value in expected.items())


@pytest.mark.parametrize(("how", "clean_names"), [("distributed", False), ("lightning", True)])
def test_wrapped_models_are_verified_with_their_optimizer(how, clean_names, tmp_path):
    rename = WRAPPED[how]
    narrow = save_model(tmp_path / "narrow", "Llama-untied")
    weights = load_file(narrow / "model.safetensors")
    state = {
        f"state.{rename(name)}.{key}": torch.rand_like(value) * 1e-3
        for name, value in weights.items()
        for key in ("exp_avg", "exp_avg_sq")
    }
    state |= {f"state.{rename(name)}.step": torch.tensor(5.0) for name in weights}
    save_file(state, narrow / "optimizer.safetensors", metadata={"optimizer": "adamw"})
    renamed(narrow, rename)
    assert widen(narrow, tmp_path / "wide", 2, clean_names=clean_names).verification.agrees
    found = verify(tmp_path / "wide", steps=2)
    assert found.agrees
    assert found.training.carried
    named = str if clean_names else rename
    written = load_file(tmp_path / "wide" / "optimizer.safetensors")
    assert f"state.{named('model.norm.weight')}.exp_avg" in written


def test_two_names_for_one_tensor_are_refused(tmp_path):
    narrow = save_model(tmp_path / "narrow", "Llama-untied")
    change_tensors(narrow, lambda tensors: {**tensors, "_orig_mod.lm_head.weight": tensors["lm_head.weight"] + 1})
    with pytest.raises(PlanError, match="same tensor"):
        widen(narrow, tmp_path / "wide", 2)

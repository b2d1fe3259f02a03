"""nanochat's own names: gates that read the first channels of the stream demand tiled copies."""

import json
from types import SimpleNamespace

import nanochat_model
import pytest
import torch
from safetensors.torch import load_file, save_file

from mupscale_cli.errors import PlanError, VerifyError
from mupscale_cli.tasks.planning import plan_widening
from mupscale_cli.tasks.verify import verify
from mupscale_cli.tasks.widen import widen


@pytest.fixture
def narrow(tmp_path):
    """A random narrow model, and the code that builds it."""
    folder, model = tmp_path / "narrow", nanochat_model.build(nanochat_model.CONFIG)
    generator = torch.Generator().manual_seed(0)
    state = {n: torch.randn(v.shape, generator=generator, dtype=torch.float64) for n, v in model.state_dict().items()}
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(nanochat_model.CONFIG))
    return SimpleNamespace(folder=folder, model=f"{nanochat_model.__file__}:build")


GROWTHS = {
    "whole": {"factor": 2},
    "any size": {"axes": {"embed": 3, "kv": 1, "g": 3}},
    "padded": {"axes": {"embed": "3/2", "kv": "3/2", "ffn": "3/2"}},
    "net2net": {"factor": 2, "method": "net2net"},
    "hyperclone": {"factor": 2, "method": "hyperclone"},
}


@pytest.mark.parametrize("growth", GROWTHS)
def test_the_function_is_kept(growth, narrow, tmp_path):
    made = widen(narrow.folder, tmp_path / "wide", model=narrow.model, dtype="float64", **GROWTHS[growth])
    assert made.verification.agrees
    assert made.verification.max_rel < 1e-12


def test_copies_are_tiled_without_being_asked_for(narrow, tmp_path):
    made = widen(narrow.folder, tmp_path / "wide", 2, verify=False)
    assert not made.plan.stays_symmetric  # the gates' gradients go to one copy
    name = "transformer.wte.weight"
    old, new = (load_file(folder / "model.safetensors")[name] for folder in (narrow.folder, tmp_path / "wide"))
    assert torch.equal(new, torch.cat([old, old], dim=1))


def test_copies_side_by_side_would_change_the_function(narrow, tmp_path):
    """The order matters: without the word of the recipe, the verification finds the difference."""
    recipe = tmp_path / "without.yaml"
    recipe.write_text(
        "extends: nanochat_gpt\naxes:\n  embed: {size: n_embd, eps: 1e-7, norm: rms, order: interleaved}\n"
    )
    made = widen(narrow.folder, tmp_path / "wide", 2, recipe=str(recipe), model=narrow.model, dtype="float64")
    assert not made.verification.agrees
    assert made.verification.max_rel > 1e-3


def test_what_moves_or_scales_the_first_units_is_refused(narrow):
    with pytest.raises(PlanError, match="first units of `embed` must stay in front and keep their size"):
        plan_widening(narrow.folder, factor=2, spread="balanced")


def test_training_is_not_claimed_to_be_the_same(narrow, tmp_path):
    widen(narrow.folder, tmp_path / "wide", 2, verify=False)
    with pytest.raises(VerifyError, match="gradients that their copies do not"):
        verify(tmp_path / "wide", model=narrow.model, steps=2)

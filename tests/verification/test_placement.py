"""Placing the two models in memory, on disk, or on devices."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from mupscale_cli.errors import VerifyError
from mupscale_cli.tasks.planning import plan_widening
from mupscale_cli.tasks.verify import verify
from mupscale_cli.tasks.widen import widen
from mupscale_cli.verification import placement
from mupscale_cli.verification.result import CannotVerify


def test_auto_chooses_the_most_precise_type_that_fits(monkeypatch, mlp, tmp_path):
    source, model = mlp
    plan = plan_widening(source, factor=2)
    # 16 x 5 + 16 + 12 x 16 + 12 + 3 x 12 + 3 = 339 numbers.
    for free, expected in ((339 * 8 * 2, "float64"), (339 * 4 * 2 - 1, "float32")):
        monkeypatch.setattr(placement, "free_bytes", lambda _, free=free: free)
        found = widen(source, tmp_path / f"{expected}.safetensors", 2, plan=plan, model=model)
        assert found.verification.dtype == expected
    monkeypatch.setattr(placement, "free_bytes", lambda _: 339 * 4 - 1)
    found = widen(source, tmp_path / "none.safetensors", 2, plan=plan, model=model)
    assert found.verification is None
    assert "free" in found.skipped


@pytest.mark.parametrize("case", ["Llama-tied", "Mixtral-untied", "T5-tied"])
def test_reading_weights_from_disk_gives_the_same_result(case, saved, tmp_path):
    here = widen(saved(case), tmp_path / "wide", 3, dtype="float64").verification
    found = verify(tmp_path / "wide", saved(case), only=["function"], device="disk").function
    assert found.agrees
    assert found.device == "cpu, weights read from disk"
    assert found.num_modules == here.num_modules
    assert [c.what for c in found.comparisons] == [c.what for c in here.comparisons]
    assert [c.max_abs for c in found.comparisons] == pytest.approx([c.max_abs for c in here.comparisons], abs=1e-12)
    weights = load_file(tmp_path / "wide" / "model.safetensors")
    name = next(name for name, value in weights.items() if value.dim() == 2 and "embed" not in name)
    weights[name][0, 0] += 1
    save_file(weights, tmp_path / "wide" / "model.safetensors", metadata={"format": "pt"})
    assert not verify(tmp_path / "wide", saved(case), only=["function"], device="disk").agrees


def test_a_single_file_can_be_read_from_disk(saved, tmp_path):
    source = saved("Llama-untied") / "model.safetensors"
    found = widen(source, tmp_path / "w.safetensors", 2, device="disk").verification
    assert found.agrees


def test_a_model_that_does_not_fit_is_read_from_disk(monkeypatch, saved, tmp_path):
    source = saved("Llama-untied")
    narrow, wide = (8 * 1.2 * parameters for parameters in plan_widening(source, factor=2).num_parameters)
    for free, narrow_offload in ((wide / 2.5, None), (narrow / 2, "disk")):
        monkeypatch.setattr(placement, "free_bytes", lambda _, free=free: free)
        placements = placement.choose_placements(plan_widening(source, factor=2), "auto", "auto", can_offload=True)
        assert (placements.narrow.offload, placements.wide.offload) == (narrow_offload, "disk")
        assert placements.dtype == torch.float64
        with pytest.raises(CannotVerify, match="GB free"):
            placement.choose_placements(plan_widening(source, factor=2), "auto", "cpu", can_offload=True)
    found = widen(source, tmp_path / "wide", 2).verification
    assert found.agrees
    assert found.device == "cpu, weights read from disk"
    assert found.dtype == "float64"


def test_a_model_that_cannot_be_offloaded_is_skipped(saved, tmp_path):
    found = widen(saved("SiglipVision-head"), tmp_path / "wide", 2, device="disk")
    assert found.verification is None
    assert "on one device" in found.skipped


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"device": "spread"}, "finds none"),
        ({"dtype": "float12"}, "float12"),
        ({"device": "abacus"}, "abacus"),
        ({"dtype": "int32"}, "int32"),
    ],
)
def test_impossible_options_are_refused(options, says, saved, tmp_path):
    with pytest.raises(VerifyError, match=says):
        widen(saved("Llama-tied"), tmp_path / "wide", 2, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("device", ["disk", "spread"])
def test_training_cannot_be_offloaded(device):
    with pytest.raises(VerifyError, match="one device"):
        placement.training_device(device)

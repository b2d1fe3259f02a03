"""Checkpoints of DeepSpeed's ZeRO, as their files are: partitioned among processes, and universal.

`trainers/test_deepspeed.py` reads and resumes what DeepSpeed itself writes.
"""

import math

import pytest
import torch
from zero_files import GROUPS, KEYS, SHAPES, save, tensors_of, write_partitioned

from cli_runner import run
from helpers import build
from mupscale_cli.checkpoints.containers import stand_ins
from mupscale_cli.checkpoints.containers.zero import load_zero, read_zero
from mupscale_cli.errors import CheckpointError


@pytest.mark.parametrize("stage", [1, 3])
def test_tensors_are_put_together_from_all_processes(stage, tmp_path):
    tensors = tensors_of(SHAPES)
    loaded = load_zero(read_zero(write_partitioned(tmp_path / "global_step7", stage, tensors)))
    for name in SHAPES:
        assert torch.equal(loaded["module"][name], tensors["fp32"][name])
        for key in KEYS[1:]:
            assert torch.equal(loaded["optimizer"]["state"][name][key], tensors[key][name])
        assert loaded["optimizer"]["state"][name]["step"] == torch.tensor(7.0)
    assert [tuple(group["params"]) for group in loaded["optimizer"]["param_groups"]] == list(GROUPS)
    assert loaded["model_states"]["global_steps"] == 7
    assert loaded["optimizer_state"]["loss_scaler"]["cur_scale"] == 1.0


def test_flat_tensors_of_a_group_belong_together(tmp_path):
    """Stage 3 fills a flat tensor with `sub_group_size` elements of a process before it starts another."""
    tensors = tensors_of(SHAPES)
    flat = (("b.weight",), ("a.weight",), ("a.bias", "b.bias"))
    config = {"zero_optimization": {"stage": 3, "sub_group_size": 6}}  # b.weight has 7 elements a process, a.weight 5
    folder = write_partitioned(tmp_path / "7", 3, tensors, flat, ds_config=config)
    groups = read_zero(folder).content["optimizer"]["param_groups"]
    assert [tuple(group["params"]) for group in groups] == [("b.weight", "a.weight"), GROUPS[1]]

    config = {"zero_optimization": {"stage": 3, "sub_group_size": 100}}
    with pytest.raises(CheckpointError, match="2 groups of parameters in 3 flat tensors") as error:
        read_zero(write_partitioned(tmp_path / "8", 3, tensors, flat, ds_config=config))
    assert "sub_group_size" in error.value.hint


@pytest.mark.parametrize("stage", [1, 3])
def test_widened_checkpoints_are_universal_and_can_be_widened_again(stage, tmp_path):
    model = build("Llama-untied")
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    groups = tuple(tuple(n for n, shape in shapes.items() if (len(shape) > 1) == many) for many in (True, False))
    narrow = tmp_path / "narrow"
    write_partitioned(narrow / "global_step7", stage, tensors_of(shapes), groups, processes=2)
    (narrow / "latest").write_text("global_step7")
    model.config.save_pretrained(narrow)
    for source, target in (("narrow", "wide"), ("wide", "wider")):
        result = run("widen", str(tmp_path / source), "-f", "2", "-o", str(tmp_path / target), "--no-verify")
        assert result.code == 0, result.err
        # The values were made up, so functions and steps are not compared, but every byte is.
        checks = [word for part in ("weights", "config", "files") for word in ("--only", part)]
        checked = run("verify", str(tmp_path / target), *checks)
        assert checked.code == 0, checked.out + checked.err
        assert "optimizer" in checked.out
        assert (tmp_path / target / "latest_universal").read_text() == "global_step7"
        assert not (tmp_path / target / "latest").exists()
    step = tmp_path / "wide" / "global_step7"
    saved = torch.load(step / "zero" / "model.norm.weight" / "exp_avg.pt", weights_only=True)
    assert saved["param"].shape == (2 * shapes["model.norm.weight"][0],)
    assert torch.load(step / "zero" / "model.norm.weight" / "step.pt", weights_only=True) == 7.0
    kept = stand_ins.load(step / "zero" / "optimizer_state.pt", "cpu")
    assert {group["lr"] for group in kept["param_groups"]} == {1e-3, 5e-4}
    assert kept["optimizer_state_dict"]["state"][0]["step"] == 7.0
    assert repr(kept["zero_stage"]) == f"ZeroStageEnum({stage})"
    (states,) = step.glob("*_model_states.pt")
    assert states.name.startswith("zero_pp_rank_0" if stage == 3 else "mp_rank_00")
    states = stand_ins.load(states, "cpu")
    shown = {name: math.prod(shape) for group in states["param_shapes"] for name, shape in group.items()}
    assert shown["model.norm.weight"] == 2 * shapes["model.norm.weight"][0]
    assert states["global_steps"] == 7


def test_what_cannot_be_widened_is_refused(tmp_path):
    tensors = tensors_of(SHAPES)
    folder = write_partitioned(tmp_path / "few", 1, tensors)
    (folder / "zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(CheckpointError, match="expected one for each of 3 processes"):
        read_zero(folder)
    frozen = write_partitioned(tmp_path / "frozen", 1, tensors, frozen_param_shapes={"c": torch.Size([2])})
    with pytest.raises(CheckpointError, match="has frozen parameters"):
        read_zero(frozen)
    parallel = write_partitioned(tmp_path / "parallel", 1, tensors)
    save(parallel / "mp_rank_01_model_states.pt", {})
    with pytest.raises(CheckpointError, match="tensor or pipeline parallelism"):
        read_zero(parallel)
    escaping = {key: {f"../{name}": value for name, value in each.items()} for key, each in tensors.items()}
    groups = tuple(tuple(f"../{name}" for name in group) for group in GROUPS)
    with pytest.raises(CheckpointError, match="has a parameter called"):
        read_zero(write_partitioned(tmp_path / "escaping", 1, escaping, groups))
    shapes = [{"a.weight": (50, 3), "b.weight": (4, 5)}, {"a.bias": (5,), "b.bias": (3,)}]
    short = write_partitioned(tmp_path / "short", 1, tensors, param_shapes=shapes)
    with pytest.raises(CheckpointError, match=r"holds 15 elements of `a.weight`, expected 150"):
        read_zero(short)

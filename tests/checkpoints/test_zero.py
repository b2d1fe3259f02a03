"""Checkpoints of DeepSpeed's ZeRO, as their files are: partitioned among processes, and universal.

`trainers/test_deepspeed.py` reads and resumes what DeepSpeed itself writes.
"""

import math

import pytest
import torch

from cli_runner import run
from helpers import build
from mupscale_cli.checkpoints.containers import stand_ins
from mupscale_cli.checkpoints.containers.zero import load_zero, read_zero
from mupscale_cli.errors import CheckpointError

SHAPES = {"a.weight": (5, 3), "b.weight": (4, 5), "a.bias": (5,), "b.bias": (3,)}
GROUPS = (("a.weight", "b.weight"), ("a.bias", "b.bias"))
KEYS = ("fp32", "exp_avg", "exp_avg_sq")


def made(name, *arguments, **attributes):
    """Return the stand-in of one of DeepSpeed's objects."""
    instance = stand_ins._stand_ins()[f"deepspeed.{name}"](*arguments)
    if attributes:
        instance.__setstate__(attributes)
    return instance


def tensors_of(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {key: {n: torch.randn(shape, generator=generator) for n, shape in shapes.items()} for key in KEYS}


def save(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, file, pickle_module=stand_ins)


def write_partitioned(folder, stage, tensors, groups=GROUPS, processes=3, **changes):
    """Write a checkpoint as the processes of a stage do."""
    shapes = [{name: tensors["fp32"][name].shape for name in group} for group in groups]
    states = {
        "module": {n: t if stage < 3 else torch.empty(0) for n, t in tensors["fp32"].items()},
        "buffer_names": [],
        "param_shapes": shapes,
        "dp_world_size": processes,
        "global_steps": 7,
        "lr_scheduler": {"last_epoch": 7},
        "ds_config": {"zero_optimization": {"stage": stage}},
        **changes,
    }
    adamw = torch.optim.AdamW([torch.zeros(1)], lr=1e-3, betas=(0.9, 0.95)).state_dict()["param_groups"][0]
    settings = [{**adamw, "weight_decay": decay} for decay in (0.1, 0.0)]
    param_groups = [{**each, "params": [index]} for index, each in enumerate(settings)]
    for rank in range(processes):
        flat, mappings = [], []
        for group in groups:
            parts, mapping = {}, {}
            for key in KEYS:
                if stage < 3:  # the group's tensors, end to end and padded, cut into equal parts
                    whole = torch.cat([tensors[key][name].flatten() for name in group])
                    size = -(-whole.numel() // processes)
                    parts[key] = torch.nn.functional.pad(whole, (0, size * processes - whole.numel()))[
                        rank * size : (rank + 1) * size
                    ].clone()
                    start = 0
                    for name in group:
                        low, high = max(start, rank * size), min(start + tensors[key][name].numel(), (rank + 1) * size)
                        start += tensors[key][name].numel()
                        if low < high:
                            mapping[name] = made(
                                "utils.tensor_fragment.fragment_address", numel=high - low, start=low - rank * size
                            )
                else:  # an equal part of each tensor, padded
                    pieces = []
                    for name in group:
                        whole = tensors[key][name].flatten()
                        size = -(-whole.numel() // processes)
                        padded = torch.nn.functional.pad(whole, (0, size * processes - whole.numel()))
                        pieces.append(padded[rank * size : (rank + 1) * size])
                    parts[key] = torch.cat(pieces)
            flat.append(parts)
            mappings.append(mapping)
        state = {
            index: {"step": torch.tensor(7.0), **{key: parts[key] for key in KEYS[1:]}}
            for index, parts in enumerate(flat)
        }
        inner = {"state": state, "param_groups": param_groups}
        own = {
            "loss_scaler": made("runtime.fp16.loss_scaler.LossScaler", cur_scale=1.0, dynamic=False),
            "zero_stage": made("runtime.zero.config.ZeroStageEnum", stage),
            "ds_version": "0.19.8",
        }
        masters = [parts["fp32"] for parts in flat]
        if stage < 3:
            own |= {"base_optimizer_state": inner, "single_partition_of_fp32_groups": masters}
            own |= {"param_slice_mappings": mappings}
        else:
            own |= {"optimizer_state_dict": inner, "fp32_flat_groups": masters}
        name = f"zero_pp_rank_{rank}_mp_rank_00"
        save(folder / f"{name}_optim_states.pt", {"optimizer_state_dict": own, "ds_config": states["ds_config"]})
        if stage == 3 or rank == 0:
            save(folder / f"{name if stage == 3 else 'mp_rank_00'}_model_states.pt", states)
    return folder


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

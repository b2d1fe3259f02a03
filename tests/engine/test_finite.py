"""Values that are not finite are refused, or copied and counted; subnormal numbers are split exactly."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cli_runner import run
from mupscale_cli import verify, widen
from mupscale_cli.errors import CheckpointError

UP, NORM = "model.layers.0.mlp.up_proj.weight", "model.norm.weight"


def changed(source, target, change, file="model.safetensors"):
    shutil.copytree(source, target)
    tensors = load_file(target / file)
    change(tensors)
    save_file(tensors, target / file, metadata={"format": "pt"})
    return target


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("name", [UP, NORM, "model.embed_tokens.weight"])
def test_a_nonfinite_value_is_refused_with_its_index(value, name, saved, tmp_path):
    def spoil(tensors):
        tensors[name].view(-1)[-1] = value

    source = changed(saved("Llama-tied"), tmp_path / "narrow", spoil)
    last = ", ".join(str(size - 1) for size in load_file(source / "model.safetensors")[name].shape)
    with pytest.raises(CheckpointError, match="not finite") as refused:
        widen(source, tmp_path / "wide", 2, verify=False)
    assert f"`{name}`" in refused.value.message
    assert f"({value} at ({last}" in refused.value.message
    assert "--allow-nonfinite" in refused.value.hint
    assert list(tmp_path.iterdir()) == [source]


def test_the_hint_for_a_nonfinite_value_works(saved, tmp_path):
    def spoil(tensors):
        tensors[UP][3, 5] = float("nan")

    source = changed(saved("Llama-tied"), tmp_path / "narrow", spoil)
    result = run("widen", str(source), "-f", "2", "-o", str(tmp_path / "wide"), "--allow-nonfinite")
    assert result.code == 0, result.err
    next_step = next(line for line in result.out.splitlines() if line.startswith("  mupscale verify"))
    assert "--only weights --only files" in next_step  # running the models could not tell anything
    assert run("verify", str(tmp_path / "wide"), "--only", "weights").code == 0


def test_nonfinite_values_are_copied_and_counted_when_allowed(saved, tmp_path):
    def spoil(tensors):
        tensors[UP][3, 5:8] = torch.tensor([float("nan"), float("inf"), -float("inf")])
        tensors[NORM][0] = float("inf")

    source = changed(saved("Llama-untied"), tmp_path / "narrow", spoil)
    widened = widen(source, tmp_path / "wide", 3, allow_nonfinite=True)
    assert widened.record["nonfinite"] == {UP: 3, NORM: 1}
    assert json.loads((tmp_path / "wide" / "mupscale.json").read_text())["nonfinite"] == {UP: 3, NORM: 1}
    assert widened.verification is None
    assert "not finite" in widened.skipped
    assert verify(tmp_path / "wide", source, only=["weights"]).agrees
    narrow, wide = load_file(source / "model.safetensors"), load_file(tmp_path / "wide" / "model.safetensors")
    copies = wide[UP].reshape(*(size for old in narrow[UP].shape for size in (old, 3)))
    for row, column in ((3, 5), (3, 6), (3, 7)):
        assert copies[row, :, column].isnan().all() == narrow[UP][row, column].isnan()
    assert torch.equal(copies.isfinite()[:, 0, :, 0], narrow[UP].isfinite())
    assert torch.equal(copies[:, 0].double().sum(-1)[:3], narrow[UP].double()[:3])  # the others are as exact as ever


def test_a_single_file_reserves_room_for_the_counts(saved, tmp_path):
    def spoil(tensors):
        for tensor in tensors.values():
            tensor.view(-1)[0] = float("nan")

    source = changed(saved("Llama-untied"), tmp_path / "narrow", spoil) / "model.safetensors"
    widened = widen(source, tmp_path / "wide.safetensors", 2, allow_nonfinite=True, verify=False)
    assert set(widened.record["nonfinite"].values()) == {1}
    with safe_open(tmp_path / "wide.safetensors", "pt") as file:
        assert json.loads(file.metadata()["mupscale"])["nonfinite"].keys() == load_file(source).keys()


def test_noise_is_never_added_to_nonfinite_values(saved, tmp_path):
    source = changed(saved("Llama-untied"), tmp_path / "narrow", lambda tensors: tensors[UP].fill_(float("nan")))
    with pytest.raises(CheckpointError, match="not finite"):
        widen(source, tmp_path / "wide", 2, allow_nonfinite=True, noise=0.1, verify=False)


def test_scaling_beyond_the_range_of_float16_is_refused(saved, tmp_path):
    recipe = tmp_path / "growing.yaml"
    recipe.write_text('axes: {a: from shapes}\nwiden: [a]\ntensors:\n  w: "a, . | a^1"\n  v: "., /a"\n')
    source = tmp_path / "x.safetensors"
    save_file({"w": torch.tensor([[1.0, 40000.0]]).half(), "v": torch.ones(3, 1).half()}, source)
    with pytest.raises(CheckpointError, match=r"`w` has values that overflow F16 when multiplied by 2"):
        widen(source, tmp_path / "y.safetensors", 2, recipe=recipe, verify=False)
    widened = widen(source, tmp_path / "y.safetensors", 2, recipe=recipe, verify=False, allow_nonfinite=True)
    assert widened.record["overflowed"] == ["w"]
    assert load_file(tmp_path / "y.safetensors")["w"].tolist() == [[2, torch.inf]] * 2


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_subnormal_numbers_are_split_exactly(dtype, factor, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text('axes: {a: from shapes}\nwiden: [a]\ntensors:\n  w: "., /a"\n')
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    values = (torch.arange(-40, 40, dtype=torch.float64) * smallest).to(dtype).view(2, 40)
    assert values.unique().numel() == 80
    save_file({"w": values}, tmp_path / "x.safetensors")
    widen(tmp_path / "x.safetensors", tmp_path / "y.safetensors", factor, recipe=recipe, verify=False)
    copies = load_file(tmp_path / "y.safetensors")["w"].double().view(2, 40, factor)
    assert torch.equal(copies.sum(-1), values.double())


def test_nonfinite_values_in_an_optimizer_state_are_refused(saved, tmp_path):
    source = shutil.copytree(saved("Llama-untied"), tmp_path / "narrow")
    weights = load_file(source / "model.safetensors")
    state = {
        f"state.{name}.{key}": torch.ones_like(value).float()
        for name, value in weights.items()
        for key in ("exp_avg", "exp_avg_sq")
    }
    state[f"state.{UP}.exp_avg"][0, 0] = float("nan")
    save_file(state, source / "optimizer.safetensors", metadata={"optimizer": "adamw"})
    with pytest.raises(CheckpointError, match=rf"state\.{UP}\.exp_avg.*not finite"):
        widen(source, tmp_path / "wide", 2, verify=False)
    widened = widen(source, tmp_path / "wide", 2, verify=False, allow_nonfinite=True)
    assert widened.record["nonfinite"] == {}
    assert widened.record["optimizer_state"]["nonfinite"] == {f"state.{UP}.exp_avg": 1}

"""Comparing a stored optimizer state with the planned one, byte by byte and setting by setting."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from cli_runner import run
from mupscale_cli.errors import CheckpointError
from mupscale_cli.optimizers.finding import open_optimizer
from mupscale_cli.tasks.verify import verify
from mupscale_cli.tasks.widen import widen
from training import save_state

# Factors: embed 2, kv 3, g 1, ffn 5. exp_avg is multiplied by 1 / (m c), exp_avg_sq by its square.
AXES = {"embed": 2, "kv": 3, "ffn": 5}


STATE_FILES = {"safetensors": "optimizer.safetensors", "torch": "optimizer.pt", "distributed": "optimizer"}


@pytest.mark.parametrize("policy", ["copy", "reset-new", "reset"])
@pytest.mark.parametrize("kind", STATE_FILES)
def test_a_state_is_compared_byte_by_byte(kind, policy, tmp_path):
    source, wide = save_state(tmp_path / "narrow", kind), tmp_path / "wide"
    widen(source, wide, axes=AXES, verify=False, optimizer_policy=policy)
    found = verify(wide, only=("weights", "files"))
    assert found.agrees
    assert found.files.state.num_tensors == (0 if policy == "reset" else len(open_state(source, kind).stored))
    if policy == "reset":
        return
    # Flip one bit of an element in the middle of a tensor.
    moments = {name: stored for name, stored in open_state(wide, kind).stored.items() if stored.spec.shape == (96, 96)}
    name, stored = next(iter(moments.items()))
    (place,) = stored.byte_ranges(4 * 96 * 7 + 4 * 3, 1)
    with open(place.file, "r+b") as stream:
        stream.seek(place.offset)
        (before,) = stream.read(1)
        stream.seek(place.offset)
        stream.write(bytes([before ^ 1]))
    found = verify(wide, only=("weights", "files"))
    assert found.files.state.differences == (f"`{name}` differs, first at element (7, 3)",)
    assert not found.agrees
    assert found.weights.agrees
    result = run("verify", str(wide), "--only", "weights", "--only", "files")
    assert result.code == 1
    assert f"optimizer: `{name}` differs, first at element (7, 3)" in result.out
    assert "34 tensors" in result.out


def open_state(folder, kind):
    return open_optimizer(folder / STATE_FILES[kind], None)


def test_settings_of_a_state_are_compared(tmp_path):
    source = save_state(tmp_path / "narrow", "torch")
    widen(source, tmp_path / "wide", axes=AXES, verify=False)
    state = torch.load(tmp_path / "wide" / "optimizer.pt", weights_only=True)
    state["param_groups"][0]["lr"] *= 2
    del state["param_groups"][1]["eps"]
    state["state"].pop(3)
    state["more"] = 1
    torch.save(state, tmp_path / "wide" / "optimizer.pt")
    found = verify(tmp_path / "wide", only=("weights", "files")).files.state.differences
    assert "`state/3/exp_avg` is missing" in found
    assert any(each.startswith("`param_groups/0/lr` is 0.006, expected 0.003") for each in found)
    assert "`param_groups/1/eps` is missing" in found
    assert "`more` is not in the plan" in found
    assert not any("state/2" in each for each in found)


def test_a_changed_or_missing_narrow_state_is_an_error(tmp_path):
    source = save_state(tmp_path / "narrow", "torch")
    widen(source, tmp_path / "wide", 2, verify=False)
    state = torch.load(source / "optimizer.pt", weights_only=True)
    state["state"][3]["exp_avg"] += 1
    torch.save(state, source / "optimizer.pt")
    with pytest.raises(CheckpointError, match=r"is not the optimizer state that was widened with"):
        verify(tmp_path / "wide", only=("weights", "files"))
    (source / "optimizer.pt").unlink()
    result = run("verify", str(tmp_path / "wide"), "--only", "weights", "--only", "files", "-q")
    assert result.code == 2
    assert "no optimizer state `optimizer.pt` next to" in result.err
    assert "--optimizer PATH" in result.err
    result = run("verify", str(tmp_path / "wide"), "--only", "weights", "--only", "files", "--optimizer", "none")
    assert result.code == 0
    assert "not compared: disabled by" in result.out
    (tmp_path / "wide" / "optimizer.pt").unlink()
    shutil.copytree(save_state(tmp_path / "again", "torch"), tmp_path / "copy")
    found = verify(tmp_path / "wide", optimizer=tmp_path / "copy" / "optimizer.pt", only=("weights", "files"))
    assert found.files.state.differences == ("`optimizer.pt` is missing",)


def test_a_state_can_be_left_out(tmp_path):
    source = save_state(tmp_path / "narrow", "distributed")
    widen(source, tmp_path / "wide", 2, verify=False)
    found = verify(tmp_path / "wide", optimizer=Path("none"), only=("weights", "files"))
    assert found.files.state is None
    assert found.files.as_record()["optimizer_state_skipped"] == found.files.state_skipped


def test_the_recorded_size_of_noise_is_measured_again(saved, tmp_path):
    wide = tmp_path / "wide"
    widen(saved("Llama-tied"), wide, 2, noise=0.1, verify=False)
    record = json.loads((wide / "mupscale.json").read_text())
    name = next(iter(record["noise"]))
    record["noise"][name] *= 1.01
    (wide / "mupscale.json").write_text(json.dumps(record))
    (difference,) = verify(wide, only=["weights"]).weights.differences
    assert re.fullmatch(
        f"the recorded standard deviation of the noise of `{name}` is .*, but the source gives .*", difference
    )
    record["noise"].pop(name)
    (wide / "mupscale.json").write_text(json.dumps(record))
    (difference,) = verify(wide, only=["weights"]).weights.differences
    assert "is missing, but the source gives" in difference

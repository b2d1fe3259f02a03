"""DeepSpeed: ZeRO 1 to 3 with two processes, saved, widened and resumed by DeepSpeed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mupscale_cli.checkpoints.containers.zero import load_zero, read_zero
from trainer_runs import ROUNDING, assert_same_run, losses_of, widen

pytest.importorskip("deepspeed")
SCRIPT = Path(__file__).with_name("deepspeed_run.py")
# In bfloat16, sums in another order differ by half a unit in the last place; the loss is the mean over 120 predictions.
TOLERANCES = {"float32": ROUNDING, "bfloat16": torch.finfo(torch.bfloat16).eps / 2 / 120**0.5}


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    tests = Path(__file__).parent.parent
    monkeypatch.setenv("PYTHONPATH", f"{tests.parent}{os.pathsep}{tests}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")


@pytest.mark.parametrize(("stage", "dtype"), [(1, "float32"), (2, "bfloat16"), (3, "float32")])
def test_the_wide_run_follows_the_narrow_one(stage, dtype, tmp_path):
    narrow = losses_of(SCRIPT, "narrow", tmp_path / "narrow", stage, dtype, processes=2)
    widen(tmp_path / "narrow", "--factor", "2", "--output", tmp_path / "wide")
    wide = losses_of(SCRIPT, "wide", tmp_path / "wide", stage, dtype, processes=2)
    assert_same_run(narrow, wide, TOLERANCES[dtype])


@pytest.mark.parametrize("stage", [1, 3])
def test_partitioned_files_are_read_as_deepspeed_converts_them(stage, tmp_path):
    losses_of(SCRIPT, "narrow", tmp_path, stage, "float32", processes=2)
    step = tmp_path / "global_step3"
    converted = step.with_name("universal")
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    folders = ["--input_folder", str(step), "--output_folder", str(converted)]
    subprocess.run([*command, *folders], check=True, capture_output=True)
    ours, theirs = load_zero(read_zero(step)), load_zero(read_zero(converted))
    assert ours["module"].keys() == theirs["module"].keys()
    for name, weight in ours["module"].items():
        assert torch.equal(weight, theirs["module"][name])
        for key, value in ours["optimizer"]["state"][name].items():
            assert torch.equal(value, theirs["optimizer"]["state"][name][key]), (name, key)
    assert ours["optimizer"]["param_groups"] == theirs["optimizer"]["param_groups"]

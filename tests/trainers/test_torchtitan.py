"""torchtitan's own Trainer resumes a widened step, and its losses are those of the narrow run."""

import importlib.util
import os
import shutil
from pathlib import Path

import pytest

from cli_runner import run
from trainer_runs import assert_same_run, losses_of

if importlib.util.find_spec("torchtitan") is None or importlib.util.find_spec("triton") is None:
    pytest.skip("needs torchtitan and triton", allow_module_level=True)

SCRIPT = Path(__file__).with_name("torchtitan_run.py")


def test_the_wide_run_follows_the_narrow_one(tmp_path, monkeypatch):
    tests = SCRIPT.parents[1]
    monkeypatch.setenv("PYTHONPATH", f"{tests}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    narrow = losses_of(SCRIPT, "narrow", tmp_path)
    source, target = tmp_path / "narrow/checkpoint/step-4", tmp_path / "wide/checkpoint/step-4"
    shutil.copy(tmp_path / "narrow/config.json", source)
    made = run("widen", str(source), "-o", str(target), "--factor", "2")
    assert made.code == 0, made.err
    assert "same function" in made.out
    settings = ("--lr", "3e-3", "--weight-decay", "0.1", "--decay", "all")
    hparams = run("hparams", str(target), *settings, "--format", "torchtitan")
    (tmp_path / "groups.py").write_text(hparams.out)
    wide = losses_of(SCRIPT, "wide", tmp_path)
    assert len(wide) == 4
    assert_same_run(narrow[4:], wide)

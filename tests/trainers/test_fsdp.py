"""What FSDP2 saves, in a loop and through accelerate, is widened in kind and resumed by two processes."""

import os
from pathlib import Path

import pytest

from trainer_runs import assert_same_run, losses_of, widen

pytest.importorskip("accelerate")

SCRIPT = Path(__file__).with_name("fsdp_run.py")
SHARDED = {"config.json", "optimizer_0", "pytorch_model_fsdp_0"}
RANDOM = {"random_states_0.pkl", "random_states_1.pkl"}
FILES = {
    "loop": SHARDED,
    "SHARDED_STATE_DICT": SHARDED | RANDOM,
    "FULL_STATE_DICT": {"config.json", "optimizer.bin", "pytorch_model_fsdp.bin"} | RANDOM,
}


@pytest.mark.parametrize("kind", FILES)
def test_the_wide_run_has_the_losses_of_the_narrow_one(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(SCRIPT.parents[1]), os.environ.get("PYTHONPATH", "")]))
    (tmp_path / "narrow").mkdir()
    narrow = losses_of(SCRIPT, "narrow", tmp_path / "narrow", kind, processes=2)
    assert {file.name for file in (tmp_path / "narrow").iterdir()} == FILES[kind]
    widen(tmp_path / "narrow", "-o", tmp_path / "wide", "--factor", "2", "--no-verify")
    assert {file.name for file in (tmp_path / "wide").iterdir()} == FILES[kind] | {"mupscale.json"}
    assert_same_run(narrow, losses_of(SCRIPT, "wide", tmp_path / "wide", kind, processes=2))

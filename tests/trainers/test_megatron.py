"""Megatron Core: a GPTModel saved as `torch_dist`, widened, and loaded by Megatron Core."""

import os
from pathlib import Path

import pytest
from checkouts import verify_with_page

from trainer_runs import assert_same_run, losses_of, widen

pytest.importorskip("megatron.core")
SCRIPT = Path(__file__).with_name("megatron_run.py")


@pytest.mark.parametrize("form", ["homogeneous", "separate"])
def test_the_wide_model_has_the_losses_of_the_narrow_one(form, tmp_path, monkeypatch):
    tests = Path(__file__).parent.parent
    monkeypatch.setenv("PYTHONPATH", f"{tests}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    narrow = losses_of(SCRIPT, "narrow", tmp_path / "narrow" / "iter_0000003", form)
    widen(tmp_path / "narrow", "--factor", "2", "--output", tmp_path / "wide")
    verify_with_page("Megatron-LM", tmp_path, tmp_path / "wide")
    wide = losses_of(SCRIPT, "wide", tmp_path / "wide" / "iter_0000003", form)
    assert_same_run(narrow, wide)
    assert (tmp_path / "wide" / "latest_checkpointed_iteration.txt").read_text() == "3"

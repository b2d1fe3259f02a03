"""Meta's own parallel model loads the widened file of a checkpoint of several ranks, and computes the same."""

import os
from pathlib import Path

import pytest
from checkouts import checkout, verify_with_page

from trainer_runs import assert_same_run, losses_of, widen

pytest.importorskip("fairscale")

SCRIPT = Path(__file__).with_name("meta_llama_run.py")


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_wide_file_computes_the_same_on_other_numbers_of_ranks(ranks, tmp_path, monkeypatch):
    paths = (checkout("LLAMA_MODELS"), SCRIPT.parents[1], os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))
    (tmp_path / "narrow").mkdir()
    narrow = losses_of(SCRIPT, "narrow", tmp_path / "narrow", processes=ranks)
    widen(tmp_path / "narrow", "-o", tmp_path / "wide", "--factor", "2", "--no-verify")
    monkeypatch.syspath_prepend(checkout("LLAMA_MODELS"))
    verify_with_page("Meta's Llama", tmp_path, tmp_path / "wide")
    for processes in (1, 2):
        assert_same_run(narrow, losses_of(SCRIPT, "wide", tmp_path / "wide", processes=processes))

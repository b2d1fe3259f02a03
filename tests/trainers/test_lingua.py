"""lingua's model, optimizer and checkpoints go on with a widened folder, with the losses of the narrow run."""

import os
from pathlib import Path

from checkouts import checkout, verify_with_page

from trainer_runs import assert_same_run, losses_of, widen

SCRIPT = Path(__file__).with_name("lingua_run.py")
# lingua imports xformers for kernels and masks that this model does not use.
XFORMERS = {"__init__.py": "", "ops.py": "class AttentionBias:\n    pass\n\n\nfmha = None\n"}


def test_the_wide_run_follows_the_narrow_one(tmp_path, monkeypatch):
    (tmp_path / "xformers").mkdir()
    for name, text in XFORMERS.items():
        (tmp_path / "xformers" / name).write_text(text)
    paths = (checkout("LINGUA"), tmp_path, SCRIPT.parents[1], os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))
    straight = losses_of(SCRIPT, "narrow", tmp_path)
    (step,) = (tmp_path / "narrow/checkpoints").iterdir()
    target = tmp_path / "wide/checkpoints" / step.name
    widen(step, "-o", target, "--factor", "2")
    verify_with_page("lingua", tmp_path, target)
    # lingua does not restore the rate of the optimizer: a resumed run has another first step than one that goes on.
    resumed = losses_of(SCRIPT, "narrow", tmp_path)
    assert resumed != straight[-len(resumed) :]
    assert_same_run(resumed, losses_of(SCRIPT, "wide", tmp_path))

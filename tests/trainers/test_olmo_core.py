"""OLMo-core's own Trainer resumes a widened checkpoint, and its losses are those of the narrow run."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli_runner import run
from mupscale_cli.tasks.widen import widen

if importlib.util.find_spec("olmo_core") is None:
    pytest.skip("needs OLMo-core", allow_module_level=True)

SCRIPT = Path(__file__).with_name("olmo_core_run.py")
REL = 16 * 2**-24  # the losses are computed in float32: some roundings of them
ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "NUM_NODES": "1"}
MEETING = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "FS_LOCAL_RANK": "0"}


def losses(phase, folder, kind):
    command = [sys.executable, str(SCRIPT), phase, str(folder), kind]
    done = subprocess.run(command, env=os.environ | ALONE | MEETING, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return {int(step): loss for step, loss in json.loads(done.stdout.splitlines()[-1]).items()}


@pytest.mark.parametrize("kind", ["llama", "olmo2"])
def test_the_wide_run_follows_the_narrow_one(kind, tmp_path):
    narrow = losses("narrow", tmp_path, kind)
    made = widen(tmp_path / "narrow/step4", tmp_path / "wide/step4", 2)
    assert made.verification.agrees
    wide = made.output
    hparams = run("hparams", str(wide), "--lr", "3e-3", "--weight-decay", "0.1", "--decay", "all", "--json")
    (tmp_path / "hparams.json").write_text(hparams.out)
    found = losses("wide", tmp_path, kind)
    assert sorted(found) == [5, 6, 7, 8]
    assert found == pytest.approx({step: narrow[step] for step in found}, rel=REL)

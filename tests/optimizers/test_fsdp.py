"""torch saves a run that FSDP2 shards over two processes, mupscale widens it, and torch continues it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

import mupscale_cli
from helpers import build
from mupscale_cli.tasks.widen import widen

TESTS = Path(__file__).parent.parent


def processes(task, folder):
    path = os.pathsep.join([str(Path(mupscale_cli.__file__).parent.parent), str(TESTS)])
    command = [sys.executable, str(TESTS / "fsdp_processes.py"), task, str(folder)]
    result = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.skipif(sys.platform != "linux", reason="gloo on the CPU is built for Linux")
@pytest.mark.slow
def test_a_sharded_run_continues(tmp_path):
    processes("train", tmp_path)
    dcp_to_torch_save(tmp_path / "step-3", tmp_path / "whole.pt")
    model = build("Llama-tied", dtype=torch.float64)
    model.load_state_dict(torch.load(tmp_path / "whole.pt", weights_only=False)["model"])
    model.save_pretrained(tmp_path / "narrow")
    state = {"optimizer": tmp_path / "step-3"}
    widen(tmp_path / "narrow", tmp_path / "wide", 3, verify=False, **state)
    processes("resume", tmp_path)
    expected, wide_losses = torch.load(tmp_path / "losses.pt"), torch.load(tmp_path / "wide_losses.pt")
    # The reference computes norms, softmax and rotary tables in float32.
    assert wide_losses == pytest.approx(expected, rel=16 * 2**-24)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="gloo on the CPU is built for Linux")
def test_a_sharded_run_grows_in_memory(tmp_path):
    processes("grow", tmp_path)
    grown = torch.load(tmp_path / "grown.pt")
    assert "is sharded, unlike" in grown["refused"]
    assert grown["are_equal"]
    narrow, wide = grown["losses"]
    assert wide == pytest.approx(narrow, rel=16 * 2**-24)

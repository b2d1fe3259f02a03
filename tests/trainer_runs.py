"""Compare runs of real trainers before and after widening: the same batches, and the losses step by step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from cli_runner import run

STEPS = 8  # after resuming
# Losses are float32 and depend on sums in another order, and each step's rounding adds to that of the steps before. 16
# units in the last place are 2e-6, while one wrong learning rate changes the second loss by 1e-3 and more.
ROUNDING = 16 * torch.finfo(torch.float32).eps


def token_batches(
    steps: int, vocabulary: int, batch: int = 4, length: int = 16, seed: int = 7
) -> Iterator[torch.Tensor]:
    """Yield batches of token ids, int64 of shape (batch, length).

    They are a function of the seed alone: trainers draw from the global generator, which initialization of a wide model
    leaves in another state.
    """
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield torch.randint(vocabulary, (batch, length), generator=generator)


def widen(*arguments: str | Path) -> None:
    """Run `mupscale widen ARGUMENTS`, and show what it printed if it fails."""
    result = run("widen", *map(str, arguments))
    assert result.code == 0, result.out + result.err


def losses_of(script: Path, *arguments: str | Path, processes: int = 1) -> list[float]:
    """Run a training script in processes of its own and return the losses in its last line, a JSON list.

    Trainers keep global state (process groups, default dtypes, patched classes), which no other test should see. With
    more than one process, torchrun starts them, with gloo on the CPU.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *launcher, str(script), *map(str, arguments)]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout[-4000:] + finished.stderr[-8000:]
    return json.loads(finished.stdout.strip().splitlines()[-1])


def largest_difference(narrow: Sequence[float], wide: Sequence[float]) -> float:
    """Return the largest relative difference of two runs' losses, step by step."""
    assert len(narrow) == len(wide) > 1
    return max(abs(w - n) / abs(n) for n, w in zip(narrow, wide, strict=True))


def assert_same_run(narrow: Sequence[float], wide: Sequence[float], tolerance: float = ROUNDING) -> None:
    """Check that two runs have the same losses, and that the losses move enough for this to mean something."""
    difference = largest_difference(narrow, wide)
    assert difference <= tolerance, f"{difference:.1e}\n{narrow}\n{wide}"
    moved = max(narrow) - min(narrow)
    assert moved > 100 * tolerance * max(narrow), f"the losses hardly move: {narrow}"

"""Fixtures: a trainer with a known loss, tokens, and a finished sweep."""

import shlex
import sys

import numpy as np
import pytest

from mupscale_cli.tasks.widen import widen
from sweeps import SHORT, VOCAB, sweep, words
from training import save_training

# Its loss is a parabola in log2(lr), slightly lower with noise 0.1 and with more width.
TRAINER = """
import argparse, json, math, os, sys, time
parser = argparse.ArgumentParser()
for name in ("--init", "--out", "--log"):
    parser.add_argument(name)
for name in ("--lr", "--noise", "--factor", "--seed", "--sleep", "--limit"):
    parser.add_argument(name, type=float, default=0)
args = parser.parse_args()
assert os.path.exists(os.path.join(args.init, "mupscale.json")), args.init
assert os.path.isdir(args.out)
time.sleep(args.sleep)
loss = math.log2(args.lr / 1e-3) ** 2 + abs(args.noise - 0.1) - 0.01 * args.factor + 0.001 * args.seed
loss = loss if not args.limit or args.lr < args.limit else math.nan
print("warming up", json.dumps([1]))
print(json.dumps({"step": 1, "loss": 9.0}))
print(json.dumps({"loss": loss}))
if args.log:
    with open(args.log, "a") as log:
        log.write(f"{args.factor} {args.noise} {args.lr} {args.seed}\\n")
"""


@pytest.fixture(scope="session")
def trainer(tmp_path_factory):
    file = tmp_path_factory.mktemp("trainer") / "my train.py"
    file.write_text(TRAINER)

    def command(**options):
        words = [
            sys.executable,
            str(file),
            "--init",
            "{checkpoint}",
            "--lr={lr}",
            "--noise",
            "{noise}",
            "--factor",
            "{factor}",
            "--seed",
            "{seed}",
            "--out",
            "{output}",
        ]
        return shlex.join([*words, *(word for name, value in options.items() for word in (f"--{name}", str(value)))])

    return command


@pytest.fixture(scope="session")
def tokens(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "tokens.npy"
    np.save(file, np.random.default_rng(0).integers(0, VOCAB, 400).astype(np.uint16) // 7)
    return file


@pytest.fixture(scope="session")
def swept(tokens, tmp_path_factory):
    """Sweep a checkpoint with an optimizer state; return the checkpoint, the arguments and the result."""
    folder = tmp_path_factory.mktemp("swept")
    narrow = save_training(folder / "narrow", "Llama-tied", "adamw")
    arguments = (
        narrow,
        "--data",
        tokens,
        *words("--lr 1e-3,3e-3 --noise 0,0.1 --factor 2,3 --target 8 --weight-decay 0.1 --seeds 2"),
        *SHORT,
    )
    return narrow, arguments, sweep(*arguments)


@pytest.fixture(scope="session")
def wide(swept, tmp_path_factory):
    return str(widen(swept[0], tmp_path_factory.mktemp("wide") / "wide", factor=4, verify=False).output)

"""Pipes, devices, folders and huge files in the place of every small file: one message, no waiting, exit code 2."""

import os
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest

from cli_runner import run
from mupscale_cli.tasks.widen import widen
from training import save_state

pytestmark = pytest.mark.skipif(not Path("/dev/zero").exists(), reason="pipes and devices in folders are those of Unix")
SECONDS = 20  # far more than any of these commands takes; reading a pipe or a device never ends
HUGE = 200_000_000_000

# What is read, the command that reads it, and kinds of files that are refused there.
PLACES = {
    "job.yaml": ("run", "{file}"),
    "mine.yaml": ("widen", "{narrow}", "--factor", "2", "--recipe", "{file}"),
    "narrow/config.json": ("widen", "{narrow}", "--factor", "2"),
    "narrow/model.safetensors.index.json": ("inspect", "{narrow}"),
    "narrow/model.safetensors": ("inspect", "{narrow}"),
    "narrow/tokenizer.json": ("verify", "{narrow}", "{wide}"),
    "narrow/generation_config.json": ("verify", "{narrow}", "{wide}"),
    "narrow/optimizer.pt": ("widen", "{narrow}", "--factor", "2"),
    "narrow/scheduler.pt": ("widen", "{narrow}", "--factor", "2", "--no-verify"),
    "state.pt": ("widen", "{narrow}", "--factor", "2", "--optimizer", "{file}", "--key", "model"),
    "state/.metadata": ("widen", "{narrow}", "--factor", "2", "--optimizer", "{folder}"),
    "state/__0_0.distcp": ("widen", "{narrow}", "--factor", "2", "--optimizer", "{folder}"),
    "optimizer.safetensors.index.json": ("widen", "{narrow}", "--factor", "2", "--optimizer", "{file}"),
    "wide/mupscale.json": ("hparams", "{wide}", "--lr", "1"),
    "own.py": ("verify", "{narrow}", "{wide}", "--model", "{file}:build"),
    "x.config.json": ("recipes", "infer", "{file}"),
    "sweep.json": ("plot", "sweep", "{file}", "-o", "{picture}"),
    "verified.json": ("plot", "errors", "{file}", "-o", "{picture}"),
    "tokens.bin": ("sweep", "{narrow}", "--data", "{file}", "-o", "{sweep}"),
    "text.txt": ("sweep", "{narrow}", "--data", "{file}", "-o", "{sweep}"),
    "sweep/trials.jsonl": ("sweep", "{narrow}", "--command", "true {{checkpoint}} {{lr}}", "-o", "{sweep}"),
}
DATA = ("tokens.bin", "text.txt")
LARGE = (*DATA, "state/__0_0.distcp")


@contextmanager
def limited_time():
    def stop(*_):
        raise AssertionError(f"still reading after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A narrow checkpoint in the middle of training and its widening; states in other formats."""
    folder = tmp_path_factory.mktemp("models")
    save_state(folder / "narrow", "torch")
    widen(folder / "narrow", folder / "wide", 2, verify=False)
    shutil.move(save_state(folder / "other", "distributed") / "optimizer", folder / "state")
    return folder


def make(path, kind):
    """Put a pipe, an endless device, a folder or a huge file at a path."""
    if path.is_file():
        path.unlink()
    path.parent.mkdir(exist_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        path.touch()
        os.truncate(path, HUGE)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "huge file"])
@pytest.mark.parametrize("place", PLACES)
def test_nothing_but_a_plain_file_of_limited_size_is_read(place, kind, models, tmp_path, monkeypatch):
    if place in LARGE and kind == "huge file":
        pytest.skip("its size has no limit")
    if place in DATA and kind == "folder":
        pytest.skip("training data may be a folder")
    work = tmp_path / "work"
    shutil.copytree(models, work)
    monkeypatch.chdir(work)
    if place.endswith("index.json") and place.startswith("narrow"):
        (work / "narrow" / "model.safetensors").unlink()
    if place == "sweep/trials.jsonl":
        (work / "sweep" / "locks").mkdir(parents=True)
    make(work / place, kind)
    paths = {"file": place, "folder": Path(place).parent, "narrow": "narrow", "wide": "wide"}
    command = [word.format(**paths, picture="x.png", sweep="sweep") for word in PLACES[place]]
    with limited_time():
        result = run(*command)
    assert result.code == 2, result
    assert Path(place).name in result.err, result.err
    assert "Traceback" not in result.err
    assert len(result.err) < 2000

"""The examples run, and the tutorial shows them as they are, with what they print."""

import os
import re
import runpy
import shutil
import subprocess
import sys

import pytest
from doc_commands import MANUAL, ROOT, blocks

from cli_runner import run
from mupscale_cli.tasks.demo import training

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Return a folder with the demo's model after three steps, as the tutorial's first four sections leave it."""
    folder = tmp_path_factory.mktemp("examples")
    steps, training.STEPS = training.STEPS, 3
    try:
        training.train(folder / "mupscale-demo" / "tiny", lambda _step, _loss: None)
    finally:
        training.STEPS = steps
    wide = ("-f", "2", "-o", str(folder / "wide"), "--no-verify")
    assert run("widen", str(folder / "mupscale-demo" / "tiny"), *wide).code == 0
    return folder


def executed(name, *arguments, monkeypatch, capsys):
    """Run a script in this process, which has imported torch; return its last lines."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


def shown(name):
    """Return what the tutorial says that a script prints."""
    (text,) = [text for text in blocks(MANUAL / "tutorial.md", "text") if f"examples/{name}" in text.partition("\n")[0]]
    return text.partition("\n")[2]


def without_losses(text):
    return re.sub(r"\d\.\d{4}", "LOSS", text)


def test_python_of_the_tutorial_is_that_of_the_examples():
    sources = [file.read_text() for file in EXAMPLES.glob("*.py")]
    excerpts = list(blocks(MANUAL / "tutorial.md", "python"))
    assert len(excerpts) == 2
    for text in excerpts:
        assert any(text in source for source in sources), text


def test_every_example_says_how_to_run_it():
    for file in EXAMPLES.glob("*.py"):
        assert f": python {file.name} " in file.read_text().splitlines()[0] + file.read_text().splitlines()[1]


def test_the_plain_loop_continues_the_run(models, monkeypatch, capsys):
    printed = executed("plain_loop.py", models / "wide", monkeypatch=monkeypatch, capsys=capsys)
    assert without_losses(printed) == without_losses(shown("plain_loop.py"))
    narrow = models / "mupscale-demo" / "tiny"
    monkeypatch.setattr("mupscale.scale_optimizer", lambda *_: None)
    monkeypatch.setattr("mupscale.clip_grad_norm_", clip_plainly)
    assert executed("plain_loop.py", narrow, monkeypatch=monkeypatch, capsys=capsys) == printed  # the same losses


def clip_plainly(optimizer, norm):
    from torch.nn.utils import clip_grad_norm_

    return clip_grad_norm_([tensor for group in optimizer.param_groups for tensor in group["params"]], norm)


@pytest.mark.slow
def test_the_trainer_resumes_with_the_same_losses(models, tmp_path, monkeypatch, capsys):
    narrow = models / "mupscale-demo" / "tiny"
    printed = executed("hf_trainer.py", narrow, tmp_path, monkeypatch=monkeypatch, capsys=capsys)
    table = printed[printed.index("step  narrow") :]
    assert without_losses(table) == without_losses(shown("hf_trainer.py"))
    for line in table.splitlines()[1:]:
        _step, before, after = line.split()
        assert before == after


@pytest.mark.slow
def test_a_model_grows_in_its_process(models, monkeypatch, capsys):
    narrow = models / "mupscale-demo" / "tiny"
    lines = executed("grow_in_process.py", narrow, monkeypatch=monkeypatch, capsys=capsys).splitlines()
    assert [int(line.split()[-1]) for line in lines] == [64] * 4 + [128] * 4


@pytest.mark.slow
def test_a_network_of_ones_own_is_drafted_widened_and_verified(tmp_path):
    command = [sys.executable, EXAMPLES / "own_module.py", tmp_path / "own"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("same function") >= 2


@pytest.mark.slow
def test_a_family_is_made_and_shown_before_it_is_published(models, tmp_path):
    shutil.copytree(models / "mupscale-demo", tmp_path / "mupscale-demo")
    shutil.copy(EXAMPLES / "family.yaml", tmp_path)
    program = tmp_path / "bin" / "mupscale"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m mupscale_cli "$@"\n')
    program.chmod(0o755)
    path = os.pathsep.join([str(program.parent), os.environ["PATH"]])
    command = ["sh", EXAMPLES / "release.sh", "family.yaml", "me"]
    variables = environment(PATH=path, HF_HUB_OFFLINE="1")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=variables)
    assert done.returncode == 0, done.stderr
    assert {"# small", "# medium"} <= set(done.stdout.splitlines())


def environment(**variables):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, **variables}

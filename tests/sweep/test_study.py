"""Test the trials of a sweep: continuing after a kill, several processes, a growing grid."""

import json
import os
import re
import shutil
import signal
import time

import forked
from cli_runner import run
from helpers import build, randomize
from mupscale_cli.sweep.grid import make_grid
from mupscale_cli.sweep.study import TRIALS, Running, Study
from sweeps import OWN, SHORT, sweep, words


def until(condition, seconds=60):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


def lines(log):
    return log.read_text().splitlines() if log.exists() else []


def test_killed_sweep_continues(trainer, tmp_path, saved, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = tmp_path / "log"
    arguments = (
        saved("Llama-untied"),
        "--command",
        trainer(log="log", sleep=0.1),
        *words("--lr 1e-3 --lr-steps 3 --noise 0.1,0.2 --factor 2 --no-picture"),
    )
    first = forked.start("sweep", *map(str, arguments), "-o", str(tmp_path / "s"))
    until(lambda: len(lines(log)) >= 3)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    done = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert not done["complete"]
    assert 2 <= len(done["trials"]) < 6
    second = sweep(*arguments, "-o", tmp_path / "s")
    assert re.search(r"continuing: \d of 6 trials finished", second.err)
    ran = lines(log)
    assert len(set(ran)) == 6
    assert len(ran) <= 7  # only the killed trial ran again
    sweep(*arguments, "-o", tmp_path / "t")
    assert (tmp_path / "s" / "sweep.json").read_text() == (tmp_path / "t" / "sweep.json").read_text()


def test_processes_share_the_trials(trainer, tmp_path, saved):
    log = tmp_path / "log"
    arguments = (
        saved("Llama-untied"),
        "--command",
        trainer(log=log, sleep=0.1),
        *words("--lr-steps 5 --noise 0,0.1 --factor 2"),
        "-o",
        tmp_path / "s",
        "--json",
        "--no-picture",
    )
    other = forked.start("sweep", *map(str, arguments))
    ours = json.loads(sweep(*arguments, "--jobs", "2").out)
    out, err = other.communicate(timeout=90)
    assert other.returncode == 0, err
    assert len(lines(log)) == len(set(lines(log))) == 10
    assert json.loads(out) == ours
    assert ours["complete"]


def test_grid_can_grow_and_shrink(trainer, tmp_path, saved):
    log = tmp_path / "log"
    arguments = (
        saved("Llama-untied"),
        "--command",
        trainer(log=log),
        *words("--noise 0.1 --factor 2"),
        "-o",
        tmp_path / "s",
        "--no-picture",
    )
    assert "is the largest of the grid" in sweep(*arguments, "--lr", "2e-4,5e-4").out
    assert "recommended for x2 and any other width: lr 0.001," in sweep(*arguments, "--lr", "5e-4,1e-3,2e-3").out
    assert len(lines(log)) == 4
    assert (
        len(json.loads(sweep(*arguments, "--lr", "1e-3", "--lr-steps", "1", "--json").out)["trials"]) == 1
    )  # and shrink
    assert len(lines(log)) == 4


def test_changed_setting_is_refused(trainer, tmp_path, saved):
    arguments = (saved("Llama-untied"), *words("--lr-steps 1 --noise 0 -f 2"), "-o", tmp_path / "s", "--no-picture")
    sweep(*arguments, "--command", trainer())
    result = run("sweep", *map(str, arguments), "--command", trainer(limit=1))
    assert result.code == 2
    assert "was started with command" in result.err


def test_changed_checkpoint_is_refused(trainer, tmp_path, saved):
    narrow = tmp_path / "narrow"
    shutil.copytree(saved("Llama-untied"), narrow)
    arguments = ("--command", trainer(), "--lr-steps", "1", "--noise", "0", "-f", "2", "-o", tmp_path / "s")
    sweep(narrow, *arguments)
    randomize(build("Llama-untied"), seed=1).save_pretrained(narrow)
    result = run("sweep", str(narrow), *map(str, arguments))
    assert result.code == 2
    assert "was started with model.safetensors" in result.err


def test_changed_data_of_the_same_size_is_refused(tokens, tmp_path, saved):
    data = tmp_path / tokens.name
    shutil.copy(tokens, data)
    arguments = (saved("Llama-untied"), "--data", data, *words("--lr-steps 1 --noise 0 -f 2 --no-picture"), *SHORT)
    sweep(*arguments, "-o", tmp_path / "s")
    content = bytearray(data.read_bytes())
    content[-2] ^= 1  # the lower byte of the last token
    data.write_bytes(content)
    result = run("sweep", *map(str, arguments), "-o", str(tmp_path / "s"))
    assert result.code == 2
    assert "was started with data" in result.err


def test_unreadable_trials_are_reported(tmp_path, saved):
    (tmp_path / "s" / "locks").mkdir(parents=True)
    (tmp_path / "s" / "trials.jsonl").write_text("not JSON\nat all\n")
    result = run("sweep", str(saved("Llama-untied")), *OWN, "-o", str(tmp_path / "s"))
    assert result.code == 2
    assert "cannot read" in result.err


def test_torn_last_line_is_dropped(tmp_path):
    grid = make_grid([2], [1e-3, 2e-3], [0.1], 1)
    study = Study(tmp_path)
    study.check_fixed({"steps": 3})
    with study.claim(grid) as claim:
        claim.finish(1.5)
    with open(tmp_path / TRIALS, "a") as file:
        file.write('{"point": {"fac')
    reopened = Study(tmp_path)
    with reopened.claim(grid) as claim:
        claim.finish(float("nan"))
    assert [trial.loss for trial in Study(tmp_path).results(grid)] == [1.5, None]
    assert reopened.claim(grid) is None


def test_unfinished_trial_is_claimed_again(tmp_path):
    grid = make_grid([2], [1e-3], [0.1], 1)
    study, other = Study(tmp_path), Study(tmp_path)
    study.check_fixed({})
    with study.claim(grid) as claim:
        claim.report(3, 2.5)
        assert other.claim(grid) is None
        assert other.running() == [Running(claim.point, 3, 2.5)]
    assert other.running() == []
    assert other.claim(grid).point == claim.point

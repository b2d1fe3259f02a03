"""Test the user's own trainer as a command."""

import json
import shlex
import sys

import pytest

from cli_runner import run
from mupscale_cli.sweep.command import fill, parse_command
from sweeps import sweep, words


def test_command_trains_every_point(trainer, tmp_path, saved):
    command = trainer(limit=1.9e-3)
    result = sweep(
        saved("Llama-untied"),
        "--command",
        command,
        *words("--noise 0,0.1 --factor 2 --factor 4 --seeds 2"),
        "-o",
        tmp_path / "s",
    )
    assert "recommended for x4 and any other width: lr 0.001, noise 0.1" in result.out
    assert "loss of the command" in result.out
    document = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert document["training"] is None
    assert {t["lr"] for t in document["trials"] if t["diverged"]} == {0.002}
    best = next(cell for cell in document["optima"] if cell["factor"] == 4)
    assert best["loss"] == pytest.approx(-0.04 + 0.0005)
    assert best["spread"] == pytest.approx(0.0005)
    assert "warming up" in (tmp_path / "s" / "trials" / "factor2-noise0.0-seed0-lr0.001" / "stdout.txt").read_text()


def test_fill_does_not_replace_placeholders_in_values():
    words = parse_command("train {checkpoint} --lr={lr} '{\"a\": 1}'")
    assert fill(words, {"checkpoint": "/a b/{lr}", "lr": "1"}) == ["train", "/a b/{lr}", "--lr=1", '{"a": 1}']


@pytest.mark.parametrize(
    ("program", "messages"),
    [
        ("import sys; print('cause', file=sys.stderr); sys.exit(3)", ["exited with 3", "    cause"]),
        ("print('hello')", ["printed no line of JSON with `loss`", "    hello"]),
        ("print('{\"loss\": 1}'); print('{\"done\": true}')", ["printed no line of JSON with `loss`"]),
        ("print('{\"loss\": [1]}')", ["printed the loss [1], which is not a number"]),
    ],
)
def test_command_failure_is_reported(program, messages, tmp_path, saved):
    command = shlex.join([sys.executable, "-c", program, "{checkpoint}", "{lr}"])
    result = run("sweep", str(saved("Llama-untied")), "--command", command, "--factor", "2", "-o", str(tmp_path / "s"))
    assert result.code == 2
    for text in messages:
        assert text in result.err


def test_error_of_a_worker_is_reported_once(tmp_path, saved):
    command = shlex.join([sys.executable, "-c", "raise SystemExit(3)", "{checkpoint}", "{lr}"])
    result = run(
        "sweep", str(saved("Llama-untied")), "--command", command, "-f", "2", "-j", "2", "-o", str(tmp_path / "s")
    )
    assert result.code == 2
    assert result.err.count("error:") == 1
    assert "exited with 3" in result.err

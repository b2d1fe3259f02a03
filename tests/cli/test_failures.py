"""Interrupted commands and usage errors."""

import json
import signal

import pytest

import forked
from cli_runner import run

# After a few blocks the process sends itself a signal, in the middle of writing.
INTERRUPT = """
import os, signal
import mupscale_cli.engine.streaming as streaming
write, blocks = streaming._expand, []
def interrupted(*arguments):
    blocks.append(1)
    if len(blocks) == 5:
        os.kill(os.getpid(), signal.{})
    return write(*arguments)
streaming._expand = interrupted
"""


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGKILL", -signal.SIGKILL)])
def test_interrupted_run_leaves_no_checkpoint(name, code, saved, tmp_path):
    words = ("widen", str(saved("Llama-tied")), "--factor", "2", "-o", "wide")
    result = forked.finish(*words, cwd=tmp_path, code=INTERRUPT.format(name))
    assert result.returncode == code
    assert "Traceback" not in result.stderr
    left = [file.name for file in tmp_path.iterdir()]
    if name == "SIGKILL":
        assert len(left) == 1
        assert left[0].startswith(".wide.partial-")
    else:
        assert left == []
        assert {"SIGINT": "interrupted", "SIGTERM": "terminated"}[name] in result.stderr


def test_interrupted_job_keeps_what_is_finished_and_continues(saved, tmp_path):
    (tmp_path / "narrow").symlink_to(saved("Llama-tied"))
    steps = "".join(f"  - {{widen: narrow, factor: {factor}, verify: false}}\n" for factor in (2, 3))
    (tmp_path / "job.yaml").write_text(f"steps:\n{steps}")
    in_second = """
import os, signal
import mupscale_cli.tasks.jobs.running as running
widen = running._run_widen
def interrupting(planned, *rest):
    if planned.step.options.factor == 3:
        os.kill(os.getpid(), signal.SIGINT)
    return widen(planned, *rest)
running._run_widen = interrupting
"""
    result = forked.finish("run", "job.yaml", cwd=tmp_path, code=in_second)
    assert result.returncode == 130
    assert "Traceback" not in result.stderr
    assert "interrupted" in result.stderr
    assert {file.name for file in tmp_path.iterdir()} == {"narrow", "job.yaml", "narrow-x2"}
    again = forked.finish("run", "job.yaml", "--json", cwd=tmp_path)
    assert [step["status"] for step in json.loads(again.stdout)["steps"]] == ["skipped", "done"]


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["x", "2"], "`2` is not expected here", "did you mean `--factor 2`?"),
        (["x", "--axis", "ffn", "2"], "`2` is not expected here", "did you mean `--axis ffn=2`?"),
        (["x", "y"], "`y` is not expected here", "did you mean `--output y`? `mupscale widen --help`"),
        (["x", "\u2014factor", "2"], "`\u2014factor` is not expected here", "did you mean `--factor`?"),
        (["x", "\u2013f", "2"], "`\u2013f` is not expected here", "did you mean `-f`?"),
        (["x", " "], "` ` is not expected here", "`mupscale widen --help`"),
        (["x", "y" * 5000], "is not expected here", "`mupscale widen --help`"),
        (["x", "pages"], "`pages` is not expected here", "`mupscale widen` takes a single checkpoint"),
        (["my", "model", "-f", "2"], "`model` is not expected here", "quote a path with spaces: 'my model'"),
        (["x", "--axis", "ffn=x2"], "`--axis ffn` is `x2`, expected a number", "for instance `--axis ffn=2` or"),
        (["x", "--noise", "lots"], "`--noise` is `lots`, expected a number such as 0.1", "`mupscale widen --help`"),
        (["x", "--layers", "many"], "`--layers` is `many`, expected a whole number", "`mupscale widen --help`"),
        (["x", "--factor"], "option '--factor' requires an argument", "`mupscale widen --help`"),
        (["x", "--color"], "expected auto, always or never", "`mupscale widen --help`"),
    ],
)
def test_usage_errors_say_what_was_meant(words, message, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("x", "pages", "my model"):
        (tmp_path / folder).mkdir()
    document = json.loads(run("widen", "--json", *words).out)
    assert message in document["message"]
    assert hint in document["hint"]


@pytest.mark.parametrize("prompt", ["$", "mupscale"])
def test_a_pasted_prompt_is_named(prompt):
    result = run(prompt, "widen", "x", "-f", "2")
    assert result.code == 2
    assert f"`{prompt}` is no command of mupscale" in result.err
    assert "omit it" in result.err


def test_an_option_before_the_command_is_told_its_place():
    result = run("--quiet", "widen", "x", "-f", "2")
    assert result.code == 2
    assert "no such option: --quiet" in result.err
    assert "options come after the command, as in `mupscale widen CHECKPOINT --quiet`" in " ".join(result.err.split())


def test_usage_error_is_a_document_with_typers_message():
    result = run("widen", "x", "--fctor", "2", "--json")
    assert result.code == 2
    document = json.loads(result.out)
    assert document["error"] == "UsageError"
    assert document["message"].startswith("no such option: --fctor")
    assert document["message"] in result.err.replace("\n", " ")

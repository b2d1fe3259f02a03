"""What commands print where: `--quiet`, `-v`, `--debug`, `--color`, COLUMNS, TERM; and the pager."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import load_file, save_file

import mupscale_cli
from cli_runner import run
from mupscale_cli.cli import manual
from mupscale_cli.cli.verification_view import failure_text, print_verification
from mupscale_cli.tasks.verify import verify

ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
ROOT = Path(mupscale_cli.__file__).parent.parent
COLOR_VARIABLES = ("NO_COLOR", "FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE")


@pytest.fixture(scope="module")
def wide(saved, tmp_path_factory):
    folder = tmp_path_factory.mktemp("output") / "wide"
    assert run("widen", str(saved("Llama-tied")), "-f", "2", "--no-verify", "-o", str(folder)).code == 0
    return folder


def test_quiet_prints_only_what_a_script_needs(saved, tmp_path, wide):
    result = run("widen", str(saved("Llama-tied")), "-f", "2", "-o", str(tmp_path / "new"), "-q")
    assert (result.code, result.out, result.err) == (0, f"{tmp_path / 'new'}\n", "")
    assert run("verify", str(wide), "--dtype", "float32", "--quiet") == type(result)(0, "", "")
    assert "embed" in run("inspect", str(wide), "-q").out
    failed = run("verify", str(tmp_path), "-q")
    assert failed.code == 2
    assert failed.err.startswith("error:")


def test_quiet_prints_why_a_verification_failed(saved, tmp_path, wide):
    broken = tmp_path / "broken"
    shutil.copytree(wide, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][3] *= 2
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    source = str(saved("Llama-tied"))
    result = run("verify", source, str(broken), "--only", "weights", "--quiet")
    assert (result.code, result.out) == (1, "")
    assert result.err == "weights: `model.norm.weight` differs, first at element (3,)\n"
    result = run("verify", source, str(broken), "--only", "function", "--quiet")
    assert (result.code, result.out) == (1, "")
    assert re.fullmatch(r"function: the models differ, first in `.*norm`, by .* relative\n", result.err)


def test_wrongly_stored_state_is_not_reported_as_models_that_differ(saved, wide):
    found = verify(wide, saved("Llama-tied"), steps=1)
    assert found.agrees
    assert found.training is not None
    stored = ("exp_avg of model.norm.weight",)
    found = replace(found, training=replace(found.training, stored_differences=stored))
    console = Console(file=io.StringIO(), width=200)
    print_verification(console, found)
    shown = console.file.getvalue()
    assert "stored weights differ from the plan: `exp_avg of model.norm.weight`" in shown
    assert "stored values differ from the plan" in shown
    assert "the models differ" not in shown
    assert failure_text(found) == "training: stored values differ from the plan: `exp_avg of model.norm.weight`"


def test_verbose_explains_decisions_and_debug_prints_more(saved, tmp_path):
    plan = ["widen", str(saved("Llama-tied")), "-f", "2", "--dry-run"]
    plain, verbose, debug = run(*plan), run(*plan, "-v"), run(*plan, "--debug")
    assert len({re.sub(r"[\d.]+ .B free", "", result.out) for result in (plain, verbose, debug)}) == 1
    assert plain.err == ""
    assert "recipe llama (config.json: `model_type: llama`)" in verbose.err
    assert "axis d is not widened by a bare factor" in verbose.err
    assert "rule {prefix}layers" not in verbose.err
    assert "rule {prefix}layers" in debug.err
    assert run(*plan).err == ""  # verbosity ends with the command


def test_debug_prints_tracebacks(tmp_path):
    missing = str(tmp_path / "missing")
    assert "Traceback" not in run("inspect", missing).err
    shown = run("inspect", missing, "--debug")
    assert shown.code == 2
    assert "Traceback" in shown.err
    assert shown.err.startswith("error:")


def test_bug_has_its_own_exit_code(monkeypatch, wide):
    def broken(*_, **__):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("mupscale_cli.cli.render.axes_table", broken)
    result = run("inspect", str(wide))
    assert result.code == 70
    assert "unexpected ZeroDivisionError: by zero" in result.err
    assert "Traceback" not in result.err
    result = run("inspect", str(wide), "--debug")
    assert "in broken" in result.err
    monkeypatch.setattr("mupscale_cli.cli.render.plan_document", broken)
    document = json.loads(run("inspect", str(wide), "--json").out)
    assert (document["exit_code"], document["error"]) == (70, "ZeroDivisionError")


@pytest.mark.parametrize(
    ("error", "message"),
    [(OSError(28, "No space left", "x.bin"), "`x.bin`: No space left"), (MemoryError(), "not enough memory")],
)
def test_system_errors_are_not_bugs(error, message, monkeypatch, wide):
    def refused(*_, **__):
        raise error

    monkeypatch.setattr("mupscale_cli.cli.render.axes_table", refused)
    result = run("inspect", str(wide))
    assert result.code == 2
    assert message in result.err


def test_interruption_is_a_document(monkeypatch, wide):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("mupscale_cli.cli.render.plan_document", interrupted)
    result = run("inspect", str(wide), "--json")
    assert result.code == 130
    assert json.loads(result.out)["exit_code"] == 130
    assert "interrupted" in result.err


pty = pytest.importorskip("pty")  # not on Windows


def terminal(*arguments, **environ):
    """Return what `mupscale ARGUMENTS` prints in a terminal of 80 columns."""
    unset = (*COLOR_VARIABLES, "TTY_COMPATIBLE", "COLUMNS", "LINES", "TERM", "CI")
    kept = {key: value for key, value in os.environ.items() if key not in unset}
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "mupscale_cli", *arguments],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        close_fds=True,
        env={**kept, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": "80", "PAGER": "cat", **environ},
    )
    os.close(slave)
    shown = b""
    try:
        while part := os.read(master, 1 << 16):
            shown += part
    except OSError:  # the process has closed its side
        pass
    assert process.wait() == 0, shown
    return shown.decode().replace("\r\n", "\n")


def test_color_and_width_follow_the_terminal(wide):
    colored = terminal("recipes", "show", "llama")
    assert ESCAPES.search(colored)
    assert "\x1b[1m" in colored
    for plain in (("NO_COLOR", "1"), ("CLICOLOR", "0"), ("MUPSCALE_RECIPES_SHOW_COLOR", "never")):
        assert not ESCAPES.search(terminal("recipes", "show", "llama", **dict([plain])))
    dumb = terminal("recipes", "show", "llama", TERM="dumb")
    assert not ESCAPES.search(dumb)
    broad = terminal("recipes", "show", "llama", COLUMNS="200", TERM="dumb")
    assert max(map(len, dumb.splitlines())) <= 80 < max(map(len, broad.splitlines())) <= 200
    assert "# JSON" not in terminal("help", "json")  # rendered


@pytest.mark.parametrize(
    ("words", "variables", "is_colored"),
    [
        ((), {}, False),
        ((), {"FORCE_COLOR": "1"}, True),
        ((), {"CLICOLOR_FORCE": "1"}, True),
        ((), {"CLICOLOR_FORCE": "0"}, False),
        ((), {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        ((), {"FORCE_COLOR": "1", "NO_COLOR": ""}, True),
        (("--color", "always"), {"NO_COLOR": "1", "TERM": "dumb"}, True),
        (("--color=never",), {"FORCE_COLOR": "1"}, False),
        (("--color", "auto"), {"FORCE_COLOR": "1"}, True),
    ],
)
def test_option_then_variables_decide_about_color(words, variables, is_colored, monkeypatch):
    for name in COLOR_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for command in (("help",), ("help", "nowhere"), ("hepl",), ("help", "--help")):
        result = run(*command, *words)
        assert bool(ESCAPES.search(result.out + result.err)) == is_colored, command


def test_forced_color_draws_no_bar_in_a_log(saved, tmp_path):
    result = run("widen", str(saved("Llama-tied")), "-f", "2", "-o", str(tmp_path / "new"), "--color", "always")
    assert result.code == 0
    assert "\r" not in result.err
    assert set(re.findall(r"\x1b\[[^m]*(.)", result.err)) <= {"m"}


def test_unknown_color_is_named():
    result = run("version", "--color", "blue")
    assert (result.code, result.out) == (2, "")
    assert "`--color blue` is none of auto, always, never" in result.err


def test_pages_and_help_go_through_the_pager():
    assert terminal("help", "theory", PAGER="head -n 1").count("\n") == 1
    assert terminal("help", "widen", PAGER="head -n 1") == "Usage: mupscale widen [OPTIONS] CHECKPOINT\n"
    assert terminal("help", "glossary", "--no-pager", PAGER="head -n 1").count("\n") > 20


def test_pipe_gets_no_pager(monkeypatch):
    monkeypatch.setenv("PAGER", "false")
    assert run("help", "glossary").out.startswith("# Glossary")


def test_columns_sets_the_width_of_a_pipe(monkeypatch):
    assert max(map(len, run("recipes", "show", "llama").out.splitlines())) > 120
    monkeypatch.setenv("COLUMNS", "60")
    assert max(map(len, run("recipes", "show", "llama").out.splitlines())) <= 60


@pytest.mark.parametrize("words", ["recipes list --json", "recipes list", "help theory"])
def test_pipe_that_closes_early_is_not_an_error(words):
    command = (
        f"{sys.executable} -m mupscale_cli {words} | true; exit ${{PIPESTATUS[0]}}"  # closed before the first byte
    )
    result = subprocess.run(
        ["/bin/bash", "-c", command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.stderr == ""
    assert result.returncode == 141


def test_no_command_prompts():
    """A script would wait forever."""
    for file in (ROOT / "mupscale_cli").rglob("*.py"):
        assert not re.search(r"(?<![\w.])input\(|typer\.(prompt|confirm)|Prompt\.ask|Confirm\.ask", file.read_text()), (
            file
        )


def page_on_a_terminal(text, width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=width)
    monkeypatch.setattr("mupscale_cli.cli.output.stdout", lambda: console)
    return manual._rendered(text)


def test_commands_on_a_page_are_never_broken(monkeypatch):
    command = "mupscale widen mupscale-demo/tiny --factor 2 --output a-rather-long-name --no-verify"
    shown = page_on_a_terminal(f"Text.\n\n```sh\n{command}\n  indented\n```\n", 40, monkeypatch)
    assert {command, "  indented"} <= set(shown.splitlines())


def test_a_picture_on_a_page_is_said_in_words(monkeypatch):
    shown = page_on_a_terminal("![Two curves](figures/steps.svg)", 200, monkeypatch)
    path = re.search(r"\[picture: Two curves: (.+steps\.svg)\]", shown)[1]
    assert Path(path).is_file()


def test_a_table_without_a_header_is_its_rows(monkeypatch):
    rows = page_on_a_terminal("| | |\n|---|---|\n| disk | 4 kB |\n| time | 1 s |", 60, monkeypatch).strip().splitlines()
    assert [row.split() for row in rows] == [["disk", "4", "kB"], ["time", "1", "s"]]
    assert "name" in page_on_a_terminal("| name | |\n|---|---|\n| disk | 4 kB |", 60, monkeypatch)

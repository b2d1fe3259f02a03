"""The help of commands: its form, its examples, and options from the environment."""

import shlex

import pytest

from cli_runner import commands_of, options_of, run
from help_pages import FOLDER, help_of_all
from mupscale_cli.cli.examples import examples

COMMANDS = ["", "recipes", "plot", *(" ".join(words) for words in commands_of())]


@pytest.mark.parametrize("columns", [80, 120])
def test_help_fits_the_terminal_and_cuts_nothing(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    for command in COMMANDS:
        result = run(*command.split(), "-h")
        assert result.code == 0
        assert result.out.startswith(f"Usage: mupscale {command}".rstrip())
        assert max(map(len, result.out.splitlines())) <= columns, command
        assert not {"…", "<"} & set(result.out), command
        wanted = {parameter.opts[0] for name, parameter in options_of() if name == command}
        assert {name for name in wanted if name.startswith("-") and name not in result.out} == set()


@pytest.mark.parametrize("columns", [80, 120])
def test_help_is_what_was_last_read(columns):
    """Help that changes is read again: `python tests/help_pages.py` writes it, and `git diff` shows it."""
    assert help_of_all(columns) == (FOLDER / f"{columns}.txt").read_text(encoding="utf-8")


def test_options_of_widen_are_in_groups():
    lines = run("widen", "--help").out.splitlines()
    headings = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert headings[:3] == ["Arguments:", "New shape:", "Reading the checkpoint:"]
    assert headings[-2:] == ["General options:", "Examples:"]
    general = lines[lines.index("General options:") : lines.index("Examples:")]
    names = ["--json", "-q,", "-v,", "--debug", "--color", "--log-file", "-h,"]
    assert [line.split()[0] for line in general if line.startswith("  -")] == names


def test_examples_name_options_that_exist():
    known = {}
    for name, parameter in options_of():
        known.setdefault(name, set()).update(parameter.opts)
    for command in COMMANDS:
        text = examples(command)
        if text is None:
            continue
        title, *lines = text.splitlines()
        assert title == "Examples:"
        for line in lines:
            words = shlex.split(line)
            assert words[: 1 + len(command.split())] == ["mupscale", *command.split()]
            assert {word for word in words if word.startswith("-")} <= known[command]


def test_the_axes_of_examples_exist(saved, monkeypatch, tmp_path):
    (tmp_path / "tiny").symlink_to(saved("Llama-tied"))
    monkeypatch.chdir(tmp_path)
    line = next(line for line in examples("widen").splitlines() if " -a " in line)
    words = line.split("  ")[1].split()
    assert run(*words[1:], "--dry-run").code == 0


def test_options_come_from_the_environment_and_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("MUPSCALE_WIDEN_FACTOR", "many")
    result = run("widen", str(tmp_path / "missing"))
    assert result.code == 2
    assert "`--factor` is set by the environment variable MUPSCALE_WIDEN_FACTOR" in result.err
    assert "many" in result.err
    assert "is set by" not in run("widen", str(tmp_path / "missing"), "--quiet").err
    assert "is set by" not in run("widen", str(tmp_path / "missing"), "--factor", "2").err


def test_commands_alone_print_their_help_and_exit_with_2():
    for words in ([], ["recipes"], ["plot"]):
        result = run(*words)
        assert result.code == 2
        assert "Commands:" in result.out


def test_help_of_a_command_is_its_options():
    assert run("help", "widen").out == run("widen", "--help").out
    assert run("help", "sweep").out.startswith("# ")  # the page comes first

"""`--log-file`: what is in it, and when it is refused."""

import json
import re
from pathlib import Path

import pytest

from cli_runner import run

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d"


def records(file):
    """Return the level, the origin and the text of each record of a log."""
    found = re.findall(rf"^{TIME} ([A-Z]+) (.*?): (.*(?:\n(?!{TIME}).*)*)", file.read_text(), re.MULTILINE)
    return [(level, origin, text.rstrip()) for level, origin, text in found]


def test_log_has_what_debug_prints_and_the_phases(saved, tmp_path):
    log, words = tmp_path / "log", ("widen", str(saved("Llama-tied")), "-f", "2", "-o", str(tmp_path / "wide"))
    result = run(*words, "--no-verify", "--log-file", str(log))
    assert result.code == 0
    assert "rule {prefix}layers" not in result.err
    found = records(log)
    texts = [text for _, _, text in found]
    assert texts[0].startswith("version ")
    assert f"mupscale {' '.join(words)}" in texts[0]
    assert texts[-1] == "finished"
    assert any("rule {prefix}layers" in text for level, _, text in found if level == "DEBUG")
    assert any(text.startswith("widening (") for text in texts)
    debug = run(*words, "--no-verify", "--overwrite", "--debug").err
    assert all(text in debug for level, origin, text in found if level == "DEBUG" and origin.startswith("mupscale_cli"))


def test_log_of_quiet_and_json_runs_is_whole(saved, tmp_path):
    log = tmp_path / "log"
    result = run("inspect", str(saved("Llama-tied")), "--json", "-q", "--log-file", str(log))
    assert json.loads(result.out)["schema"] == "inspect"
    assert result.err == ""
    assert any("recipe llama" in text for _, _, text in records(log))


def test_log_ends_with_the_error_and_is_appended_to(tmp_path):
    log, missing = tmp_path / "log", str(tmp_path / "missing")
    first = run("inspect", missing, "--log-file", str(log))
    assert (first.code, "Traceback" in first.err) == (2, False)
    level, _, text = records(log)[-1]
    assert level == "ERROR"
    assert "Traceback" in text
    assert f"no checkpoint at `{missing}`" in text
    assert run("version", "--log-file", str(log)).code == 0
    assert [text for _, _, text in records(log)][-1] == "finished"
    assert log.read_text().count("INFO mupscale: version ") == 2


def test_exit_codes_and_interruptions_are_logged(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    log = tmp_path / "log"
    monkeypatch.setattr("mupscale_cli.cli.manual.page_text", interrupted)
    assert run("help", "theory", "--log-file", str(log)).code == 130
    assert "interrupted" in records(log)[-1][2]


@pytest.mark.parametrize(
    ("path", "message"),
    [("no/log", "No such file or directory"), (".", "Is a directory"), ("notes", "is not a log file of mupscale")],
)
def test_log_that_cannot_be_written_is_refused_first(path, message, saved, tmp_path):
    (tmp_path / "notes").write_text("mine\n")
    result = run(
        "widen", str(saved("Llama-tied")), "-f", "2", "-o", str(tmp_path / "wide"), "--log-file", str(tmp_path / path)
    )
    assert result.code == 2
    assert message in result.err
    assert result.err.startswith("error:")
    assert "hint:" in result.err
    assert [file.name for file in tmp_path.iterdir()] == ["notes"]
    assert (tmp_path / "notes").read_text() == "mine\n"


def test_log_has_no_secrets(tmp_path):
    log = tmp_path / "log"
    token = "hf_" + "a" * 20
    assert run("inspect", f"https://user:{token}@nowhere/x", "--log-file", str(log)).code == 2
    assert token not in log.read_text()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_ends_the_log_and_not_the_command():
    result = run("version", "--log-file", "/dev/full")
    assert result.code == 0
    assert result.err.count("ends here") == 1
    assert "No space left" in result.err


def test_variable_names_the_log(tmp_path, monkeypatch):
    monkeypatch.setenv("MUPSCALE_VERSION_LOG_FILE", str(tmp_path / "log"))
    assert run("version", "-q").code == 0
    assert records(tmp_path / "log")[-1][2] == "finished"

"""What the entry point does where the system gives no streams and no threads."""

import os
import subprocess
import sys
import threading

import pytest

from cli_runner import run

UNIX = pytest.mark.skipif(os.name == "nt", reason="the shell of Unix closes descriptors")


@UNIX
@pytest.mark.parametrize(
    ("closing", "shown"),
    [
        ("<&- >&- 2>&-", None),
        (">&-", "standard output closed"),
        ("2>&-", "standard error closed"),
        (">&- 2>&-", None),
    ],
)
def test_without_streams_nothing_runs_and_nothing_is_written(closing, shown, saved, tmp_path):
    command = f'"{sys.executable}" -m mupscale_cli widen "$1" --factor 2 --no-verify -o "$2" {closing}'
    done = subprocess.run(
        ["/bin/sh", "-c", command, "sh", saved("Llama-tied"), tmp_path / "wide"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert list(tmp_path.iterdir()) == []
    printed = done.stdout + done.stderr
    assert "Traceback" not in printed
    assert (f"error: {shown}" in printed) if shown else not printed


@UNIX
def test_without_input_a_command_runs(saved):
    command = f'"{sys.executable}" -m mupscale_cli inspect "$1" <&-'
    done = subprocess.run(
        ["/bin/sh", "-c", command, "sh", saved("Llama-tied")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "embed" in done.stdout


@pytest.mark.parametrize("command", [["inspect"], ["widen", "--factor", "2", "--no-verify", "--processes", "1"]])
def test_without_threads_there_is_one_message(command, saved, tmp_path, monkeypatch):
    def refuse(_thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    monkeypatch.chdir(tmp_path)
    output = ["-o", "wide"] if "widen" in command else []
    result = run(*command, str(saved("Llama-tied")), *output)
    assert result.code == 2
    assert "the system starts no more threads" in result.err
    assert "Traceback" not in result.err
    assert list(tmp_path.iterdir()) == []

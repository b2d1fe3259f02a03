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


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no device that is always full")  # noqa: PTH110
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", [["--version"], ["help"], ["help", "--json"], ["inspect", "--json"], ["inspect"]])
def test_output_that_cannot_be_written_is_one_message(command, unbuffered, saved):
    words = [*command, str(saved("Llama-tied"))] if "inspect" in command else command
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "mupscale_cli", *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if "error" in line] == [
        "error: `standard output`: No space left on device"
    ]
    assert "Traceback" not in done.stderr


@UNIX
@pytest.mark.parametrize("module", ["signal", "typer", "mupscale_cli.cli.main", "mupscale_cli.cli.manual"])
def test_interrupting_an_import_is_one_line(module):
    code = f"""
import os, runpy, signal as the_signal, sys
sys.modules.pop("signal")
class Interrupting:
    def find_spec(name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), the_signal.SIGINT)
sys.meta_path.insert(0, Interrupting)
sys.argv = ["mupscale", "help"]
runpy.run_module("mupscale_cli", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


@UNIX
def test_an_ignored_interruption_stays_ignored():
    code = """
import os, runpy, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
import mupscale_cli.cli.manual
mupscale_cli.cli.manual.__dict__["page_titles"] = lambda: os.kill(os.getpid(), signal.SIGINT) or {"a": "b"}
mupscale_cli.cli.manual.__dict__["KINDS"] = {"c": ["a"]}
sys.argv = ["mupscale", "help"]
runpy.run_module("mupscale_cli", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


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

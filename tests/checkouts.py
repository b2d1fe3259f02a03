"""Trainers that are no packages: their checkouts, lines of their scripts to change, and the losses that they print."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from doc_commands import MANUAL

_LOSS = re.compile(r"^(?:iter|step) (\d+).*?loss:? ([\d.e+-]+)", re.MULTILINE)


def checkout(variable):
    """Return the folder that an environment variable names, or skip the test."""
    if variable not in os.environ:
        pytest.skip(f"set {variable} to a checkout of the trainer")
    return Path(os.environ[variable])


def changed(text, *lines):
    """Return a script with lines replaced, each of which must occur once."""
    for old, new in lines:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def with_printed_lines(script, printed):
    """Return a script with the lines that `widen` printed: `- old` and then `+ new`."""
    lines = [line.strip() for line in printed.splitlines()]
    old = [line[2:] for line in lines if line.startswith("- ")]
    new = [line[2:] for line in lines if line.startswith("+ ")]
    return changed(script, *zip(old, new, strict=True))


def verify_with_page(trainer, folder, wide):
    """Run `verify` with the function of the page `trainers` that builds a trainer's model, saved in a folder."""
    after = (MANUAL / "trainers.md").read_text().partition("## Verification: the model of a trainer")[2]
    text = re.search(rf"^{trainer},[^\n]*:\n\n```python\n(.*?)```", after, re.DOTALL | re.MULTILINE)[1]
    (folder / "reference.py").write_text(text)
    paths = os.pathsep.join(filter(None, [*sys.path, os.environ.get("PYTHONPATH")]))
    run_script(folder, "-m", "mupscale_cli", "verify", wide, "--model", "reference.py:build", PYTHONPATH=paths)


def run_script(folder, *command, ranks=1, **variables):
    """Run Python in a folder; return the printed loss of each step, and everything that it printed.

    Args:
        folder: the folder.
        command: the script and its arguments.
        ranks: the number of processes that train together; the first one prints.
        variables: further environment variables.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **variables}
    if ranks > 1:
        environment |= {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    runs = []
    for rank in range(ranks):
        own = environment | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {})
        runs.append(
            subprocess.Popen(
                [sys.executable, *map(str, command)],
                cwd=folder,
                env=own,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    printed = [each.communicate()[0] for each in runs]
    assert not any(each.returncode for each in runs), printed[0][-3000:]
    return {int(step): float(loss) for step, loss in _LOSS.findall(printed[0])}, printed[0]


def free_port():
    """Return a port that no program uses."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def largest_difference(narrow, wide):
    """Return the largest relative difference of two runs' losses, which must be of the same steps."""
    assert narrow.keys() == wide.keys()
    return max(abs(wide[step] / loss - 1) for step, loss in narrow.items())

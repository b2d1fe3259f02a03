"""Play each role from a fresh clone; count commands, minutes and lines to read: `python tests/roles.py [ROLE ...]`.

`--install` installs the clone with the README's command, into an environment of its own, as a newcomer would. Without
it the clone runs in the present environment. A command that exits with another code than expected ends the run with 1.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
DEMO = ("mupscale demo",)  # trains the model that the roles use


@dataclass(frozen=True)
class Role:
    """What someone types, and which page of the manual they read.

    Attributes:
        page: the page.
        commands: command lines that succeed, in order; `$CLONE` is the folder of the sources.
        mistakes: command lines that are wrong, and the words of the message that help.
    """

    page: str
    commands: tuple[str, ...]
    mistakes: dict[str, str] = field(default_factory=dict)


ROLES = {
    "newcomer": Role(
        "tutorial",
        (
            "mupscale inspect mupscale-demo/tiny",
            "mupscale widen mupscale-demo/tiny --factor 2 --dry-run",
            "mupscale widen mupscale-demo/tiny --factor 2 --output wide",
            "mupscale plot weights wide --size 4 --output weights.svg",
            "mupscale verify wide --steps 20",
            "mupscale plot steps wide --output steps.svg",
            "mupscale hparams wide",
            "python $CLONE/examples/plain_loop.py wide",
        ),
        {"mupscale widen tiny": "no checkpoint at `tiny`", "mupscale widn mupscale-demo/tiny -f 2": "widen"},
    ),
    "huggingface": Role(
        "huggingface",
        (
            "mupscale widen mupscale-demo/tiny --factor 2 --output hf-wide",
            "mupscale hparams hf-wide --lr 3e-4 --format trainer",
            "python $CLONE/examples/hf_trainer.py mupscale-demo/tiny run",
        ),
        {"mupscale widen mupscale-demo/tiny -f 2 -o x --dtype fp32": "float32"},
    ),
    "module": Role(
        "modules",
        ("python $CLONE/examples/own_module.py .", "python $CLONE/examples/grow_in_process.py mupscale-demo/tiny"),
        {"mupscale widen net.safetensors -f 2 --recipe net.yaml --model nofile.py:build -o x.safetensors": "nofile.py"},
    ),
    "release": Role(
        "releases",
        (
            "cp $CLONE/examples/family.yaml .",
            "sh $CLONE/examples/release.sh family.yaml me",
            "mupscale run family.yaml",
            "mupscale verify family/small --report small.html",
        ),
        {"mupscale push mupscale-demo/tiny me/tiny --dry-run": "was not written by mupscale"},
    ),
    "cluster": Role(
        "cluster",
        (
            "mupscale widen mupscale-demo/tiny --factor 4 --dry-run",
            "torchrun --nproc-per-node 2 -m mupscale_cli widen mupscale-demo/tiny --factor 4 -o big --no-verify",
            "mupscale verify big --only weights --only config --only files",
        ),
        {"mupscale widen mupscale-demo/tiny -f 2 -o y --max-shard-size 2": "5GB"},
    ),
    "research": Role(
        "research",
        (
            "mupscale coordcheck mupscale-demo/tiny",
            "mupscale hparams mupscale-demo/tiny-x4 --json",
            "mupscale widen mupscale-demo/tiny --factor 2 --method net2net --output drawn",
        ),
        {"mupscale widen mupscale-demo/tiny -f 2 --method net2nett -o z": "net2net"},
    ),
}


@dataclass
class Count:
    """Commands typed, seconds waited, and lines printed."""

    commands: int = 0
    seconds: float = 0.0
    lines: int = 0


class Desk:
    """Runs command lines as someone at a terminal would, with 80 columns."""

    def __init__(self, folder: Path, clone: Path, python: Path) -> None:
        programs = folder / "bin"
        programs.mkdir()
        (programs / "mupscale").write_text(f'#!/bin/sh\nexec {python} -m mupscale_cli "$@"\n')
        (programs / "mupscale").chmod(0o755)
        path = os.pathsep.join([str(programs), str(python.parent), os.environ["PATH"]])
        self.folder = folder / "work"
        self.folder.mkdir()
        fixed = {"CLONE": str(clone), "COLUMNS": "80", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(clone), "PATH": path}
        self.variables = {**os.environ, **fixed}

    def run(self, line: str, count: Count, *, code: int = 0, says: str = "") -> str:
        """Run a command line, count it, and return what it printed."""
        start = time.perf_counter()
        done = subprocess.run(  # noqa: S602 (a line as it is typed)
            line,
            shell=True,
            cwd=self.folder,
            env=self.variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        count.commands += 1
        count.seconds += time.perf_counter() - start
        count.lines += len(done.stdout.splitlines())
        if done.returncode != code or says not in done.stdout:
            sys.exit(f"$ {line}\n{done.stdout}\nexit code {done.returncode}, expected {code} and `{says}`")
        return done.stdout


def clone_and_environment(folder: Path, *, install: bool) -> tuple[Path, Path]:
    """Clone the repository; return the clone and the Python to use, which has the clone installed if wanted."""
    clone = folder / "mupscale"
    subprocess.run(f"git clone --quiet {ROOT} {clone}", shell=True, check=True)  # noqa: S602
    if not install:
        return clone, Path(sys.executable)
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    (line,) = re.findall(r"^pip (install .*) && mupscale demo$", (clone / "README.md").read_text(), re.MULTILINE)
    line = line.replace("[hf]", "[hf,plot]")
    subprocess.run(f"{python} -m pip {line} --quiet", shell=True, cwd=clone, check=True)  # noqa: S602
    return clone, python


def play(names: list[str], *, install: bool) -> dict[str, Count]:
    """Play roles, and return what each of them took."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clone, python = clone_and_environment(folder, install=install)
        desk = Desk(folder, clone, python)
        counts = {"first look": Count()}
        for line in DEMO:
            desk.run(line, counts["first look"])
        for role in names:
            counts[role] = Count()
            desk.run(f"mupscale help {ROLES[role].page}", counts[role])
            for line in ROLES[role].commands:
                desk.run(line, counts[role])
            for line, words in ROLES[role].mistakes.items():
                desk.run(line, counts[role], code=2, says=words)
        return counts


def main() -> None:
    """Play the roles that the command line names, by default all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", nargs="*", metavar="ROLE", help=f"one of {', '.join(ROLES)}")
    parser.add_argument("--install", action="store_true")
    arguments = parser.parse_args()
    lines = [f"{'role':12} {'commands':>8} {'minutes':>8} {'lines':>6}"]
    for role, count in play(arguments.role or list(ROLES), install=arguments.install).items():
        lines.append(f"{role:12} {count.commands:8} {count.seconds / 60:8.1f} {count.lines:6}")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

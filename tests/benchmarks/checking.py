"""Time of `mupscale verify --only weights --only files` relative to `cp` of the files, and memory beyond torch's."""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

from measure import peak_private_bytes, report, save_adam, save_llama
from throughput import Ballast, copying, timed, widening

_LIBRARIES = "import torch, mupscale_cli.tasks.verify"


def measured(state: str, options: argparse.Namespace, ballast: Ballast) -> tuple[Any, ...]:
    """Return the table row of a state format. Comparing and `cp` take turns."""
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        source, wide, copy = (Path(name) / each for each in ("narrow", "wide", "copy"))
        save_llama(source, options.megabytes * 10**6 // (1 if state == "none" else 5))
        if state != "none":
            save_adam(source, state)
        timed(widening(source, wide, "2", sync=False), "", _LIBRARIES)
        arguments = f"{str(wide)!r}, only=('weights', 'files'), processes=None"
        checking = f"import mupscale_cli as m; assert m.verify({arguments}).agrees"
        beyond = (peak_private_bytes(f"{_LIBRARIES}\n{checking}") - peak_private_bytes(_LIBRARIES)) / 1e6
        size = sum(file.stat().st_size for file in wide.rglob("*") if file.is_file())
        ratios = []
        for _ in range(options.repetitions):
            wall, cpu = timed(copying(wide, copy), ballast.filling(size), _LIBRARIES)
            shutil.rmtree(copy)
            ours, ours_cpu = timed(checking, ballast.filling(size), _LIBRARIES)
            ratios.append((ours / wall, ours_cpu / cpu))
        walls, cpus = zip(*ratios, strict=True)
        results = (statistics.median(walls), min(walls), max(walls), statistics.median(cpus), beyond)
        return state, f"{size / 1e9:.2f} GB", *results


def main() -> None:
    """Run the benchmark and print its results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=430, help="size of the narrow checkpoint in MB")
    parser.add_argument("--states", nargs="*", default=["none", "pt"], help="formats of Adam's state")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="output folder. Default: a temporary folder.")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as filled:
        ballast = Ballast(Path(filled))
        timed(ballast.filling())
        rows = [measured(state, options, ballast) for state in options.states]
    columns = ("state", "compared", "wall / cp", "lowest", "highest", "CPU / cp", "MB beyond torch")
    report(columns, rows, as_json=options.json)


if __name__ == "__main__":
    main()

"""Widening, as a ratio to a plain buffered copy of the same number of output bytes on the same disk."""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from measure import copy_seconds, report, save_llama

from mupscale_cli.widening import widen


def main() -> None:
    """Measure and print; the runs of both alternate, since disks are noisy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=250, help="size of the narrow checkpoint")
    parser.add_argument("--factors", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder if not given")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source = save_llama(Path(folder) / "narrow", options.megabytes * 10**6)
        for factor in options.factors:
            ratios, speeds, size = [], [], 0
            for _ in range(options.repetitions):
                started = time.perf_counter()
                size = widen(source, Path(folder) / "wide", factor, verify=False).plan.num_bytes
                seconds = time.perf_counter() - started
                shutil.rmtree(Path(folder) / "wide")
                copied = copy_seconds(source / "model.safetensors", Path(folder) / "copy", size)
                (Path(folder) / "copy").unlink()
                ratios.append(copied / seconds)
                speeds.append(size / seconds / 1e6)
            rows.append((f"x{factor}", f"{size / 1e9:.2f} GB", statistics.median(ratios), min(ratios), max(ratios),
                         statistics.median(speeds)))  # fmt: skip
    columns = ("factor", "output", "ratio to a plain copy", "lowest", "highest", "MB/s")
    report(columns, rows, as_json=options.json)


if __name__ == "__main__":
    main()

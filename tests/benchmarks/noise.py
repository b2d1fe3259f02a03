"""Time of widening with noise and other methods relative to plain widening on the same disk."""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from measure import report, save_llama

from mupscale_cli.tasks.widen import widen

KINDS = {
    "plain": {},
    "free noise, spectral": {"noise": 0.1},
    "free noise, rms": {"noise": 0.1, "noise_scale": "rms"},
    "free noise, fan-in": {"noise": 0.1, "noise_scale": "fan-in"},
    "preserving noise, spectral": {"noise": 0.1, "noise_mode": "preserving"},
    "net2net": {"method": "net2net"},
    "hyperclone": {"method": "hyperclone"},
    "hyperclone with noise": {"method": "hyperclone", "snr": 10},
    "warmstart": {"method": "warmstart"},
}


def main() -> None:
    """Run the benchmark and print its results. All kinds take turns, because machines are noisy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=100, help="size of the narrow checkpoint in MB")
    parser.add_argument("--factors", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="output folder. Default: a temporary folder.")
    parser.add_argument("--processes", type=int, help="number of processes. Default: chosen by size.")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source = save_llama(Path(folder) / "narrow", options.megabytes * 10**6)
        for factor in options.factors:
            ratios: dict[str, list[float]] = {kind: [] for kind in KINDS}
            size = 0
            for _ in range(options.repetitions):
                base = 0.0
                for kind, settings in KINDS.items():
                    started = time.perf_counter()
                    widened = widen(
                        source, Path(folder) / "wide", factor, verify=False, processes=options.processes, **settings
                    )
                    seconds = time.perf_counter() - started
                    shutil.rmtree(Path(folder) / "wide")
                    size, base = widened.plan.num_bytes, base or seconds
                    ratios[kind].append(seconds / base)
            rows += [
                (f"x{factor}", f"{size / 1e9:.2f} GB", kind, statistics.median(values), min(values), max(values))
                for kind, values in ratios.items()
            ]
    report(("factor", "output", "what", "ratio to plain", "lowest", "highest"), rows, as_json=options.json)


if __name__ == "__main__":
    main()

"""Widening, as ratios to `cp` of its output on the same disk: wall time, processor time, and memory beyond torch's.

Each widening is a process of its own, of whose times those of one that only imports the program are subtracted.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from measure import peak_bytes, report, save_llama

_LIBRARIES = "import torch, mupscale_cli.widening, mupscale_cli.convert"


def timed(command: Sequence[str | Path], synced: Path | None = None) -> tuple[float, float]:
    """Wall and processor seconds of a process; with `synced` until that file is on the disk."""
    before, started = os.times(), time.perf_counter()
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    if synced is not None:
        handle = os.open(synced, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    wall, after = time.perf_counter() - started, os.times()
    return wall, after.children_user + after.children_system - before.children_user - before.children_system


def code(source: Path, target: Path, factors: str, *, sync: bool) -> str:
    """Python that widens; without `sync` nothing waits for the disk, as `cp` does not."""
    axes = dict(part.split("=") for part in factors.split(",")) if "=" in factors else {}
    said = f"axes={ {name: int(value) for name, value in axes.items()}!r}" if axes else f"factor={factors}"
    lines = [_LIBRARIES, "import os, mupscale_cli as m"] + ([] if sync else ["os.fsync = lambda handle: None"])
    lines.append(f"m.widen({str(source)!r}, {str(target)!r}, {said}, verify=False, max_shard_size=10**13)")
    return "\n".join(lines)


def main() -> None:
    """Measure and print; all runs alternate, since disks and machines are noisy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=430, help="size of the narrow checkpoint")
    parser.add_argument("--factors", nargs="+", default=["2", "4", "3", "kv=2,ffn=4"], help="numbers, or AXIS=K,...")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder if not given")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        source, wide, copy = save_llama(folder / "narrow", options.megabytes * 10**6), folder / "wide", folder / "copy"
        libraries = peak_bytes(_LIBRARIES)
        for factors in options.factors:
            beyond = (peak_bytes(code(source, wide, factors, sync=False)) - libraries) / 1e6
            written = wide / "model.safetensors"
            size = written.stat().st_size
            for sync in (False, True):
                ratios = []
                for _ in range(options.repetitions):
                    start_wall, start_cpu = timed([sys.executable, "-c", _LIBRARIES])
                    wall, cpu = timed(["cp", written, copy], copy if sync else None)
                    copy.unlink()
                    shutil.rmtree(wide)
                    ours, ours_cpu = timed([sys.executable, "-c", code(source, wide, factors, sync=sync)])
                    ratios.append(((ours - start_wall) / wall, (ours_cpu - start_cpu) / cpu))
                walls, cpus = zip(*ratios, strict=True)
                rows.append((factors, f"{size / 1e9:.2f} GB", "synced" if sync else "buffered",
                             statistics.median(walls), min(walls), max(walls),
                             statistics.median(cpus), beyond))  # fmt: skip
            shutil.rmtree(wide)
    columns = ("factor", "output", "written", "wall / cp", "lowest", "highest", "CPU / cp", "MB beyond torch")
    report(columns, rows, as_json=options.json)
    if not options.json:
        hardware = f"{os.cpu_count()} x {platform.processor() or platform.machine()}"
        sys.stdout.write(
            f"{hardware}, {platform.system()}, Python {platform.python_version()}, torch {torch.__version__}\n"
        )


if __name__ == "__main__":
    main()

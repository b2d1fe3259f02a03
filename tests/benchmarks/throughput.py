"""Widening, as ratios to `cp` of its output on the same disk: wall time, processor time, and memory beyond torch's.

Each widening is a process of its own, whose time is taken from when it has imported the program. Just before that, and
before `cp`, a file of the output's size is written and deleted: the host of a virtual machine takes memory back that is
free for some seconds, and whoever touches it next would pay for that.
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
from pathlib import Path

import torch
from measure import peak_bytes, report, save_llama

_LIBRARIES = "import torch, mupscale_cli.widening, mupscale_cli.convert"


_PRELUDE = """
import os, sys, time
def freshen(place, size):
    with open(place + ".freshened", "wb") as stream:
        for _ in range(-(-size // (1 << 24))):
            stream.write(bytes(1 << 24))
    os.remove(place + ".freshened")
def clock():
    times = os.times()
    return time.perf_counter(), times.user + times.system + times.children_user + times.children_system
def tell(started, synced):
    if synced:
        with open(synced, "rb") as stream:
            os.fsync(stream.fileno())
    print(*(end - start for start, end in zip(started, clock())))
"""


def timed(doing: str, target: Path, size: int, libraries: str = "", synced: Path | None = None) -> tuple[float, float]:
    """Wall and processor seconds of Python code in its own process; with `synced` until that file is on the disk."""
    lines = [_PRELUDE, libraries, f"freshen({str(target)!r}, {size})", "started = clock()", doing]
    lines.append(f"tell(started, {str(synced or '')!r})")
    found = subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, capture_output=True, text=True)
    wall, processor = map(float, found.stdout.split()[-2:])
    return wall, processor


def copying(source: Path, target: Path) -> str:
    """Python that copies with `cp`."""
    return f"import subprocess; subprocess.run(['cp', {str(source)!r}, {str(target)!r}], check=True)"


def widening(source: Path, target: Path, factors: str, *, sync: bool) -> str:
    """Python that widens; without `sync` nothing waits for the disk, as `cp` does not."""
    axes = dict(part.split("=") for part in factors.split(",")) if "=" in factors else {}
    said = f"axes={ {name: int(value) for name, value in axes.items()}!r}" if axes else f"factor={factors}"
    lines = ["import os, mupscale_cli as m"] + ([] if sync else ["os.fsync = lambda handle: None"])
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
            beyond = (peak_bytes(f"{_LIBRARIES}\n{widening(source, wide, factors, sync=False)}") - libraries) / 1e6
            written = wide / "model.safetensors"
            size = written.stat().st_size
            for sync in (False, True):
                ratios = []
                for _ in range(options.repetitions):
                    wall, cpu = timed(copying(written, copy), copy, size, synced=copy if sync else None)
                    copy.unlink()
                    shutil.rmtree(wide)
                    ours, ours_cpu = timed(widening(source, wide, factors, sync=sync), copy, size, _LIBRARIES)
                    ratios.append((ours / wall, ours_cpu / cpu))
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

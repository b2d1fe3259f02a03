"""Wall and processor time of widening relative to `cp` of its output on the same disk, and memory beyond torch's.

Before each timing, memory is filled with a cached file, as on a machine in use. Otherwise the host of a virtual machine
reclaims free memory after some seconds, and the next process that touches it is slower, be it `cp` or widening.
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
from typing import Any

import torch
from measure import kinds, peak_private_bytes, report, save_adam, save_llama

_LIBRARIES = "import torch, mupscale_cli.tasks.widen, mupscale_cli.engine.shards"
_OF_STATES = {"dcp": "import mupscale_cli.optimizers.formats.distributed, torch.distributed.checkpoint"}
STATES = ("safetensors", "pt", "dcp")
WRITTEN = ("buffered", "synced", "command")  # the last is `mupscale widen --no-verify` minus `python -c "import torch"`


_SPARE = 1 << 30
_PRELUDE = """
import os, sys, time
def fill(place, start, size):
    with open(place, "rb", buffering=0) as stream:
        stream.seek(start)
        piece = bytearray(1 << 20)
        for _ in range(size >> 20):
            stream.readinto(piece)
def clock():
    times = os.times()
    return time.perf_counter(), times.user + times.system + times.children_user + times.children_system
def tell(started, synced):
    for folder, _, files in os.walk(synced):
        for file in files:
            with open(os.path.join(folder, file), "rb") as stream:
                os.fsync(stream.fileno())
    print(*(end - start for start, end in zip(started, clock())))
"""


def timed(code: str, before: str = "", libraries: str = "", synced: Path | None = None) -> tuple[float, float]:
    """Time Python code in a new process.

    Args:
        code: code to time.
        before: code that runs before the timing starts.
        libraries: import statements that run before the timing starts.
        synced: folder to flush to disk before the timing ends.

    Returns:
        Wall and processor seconds.
    """
    lines = [_PRELUDE, libraries, before, "started = clock()", code]
    lines.append(f"tell(started, {str(synced or '')!r})")
    found = subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, capture_output=True, text=True)
    wall, processor = map(float, found.stdout.split()[-2:])
    return wall, processor


class Ballast:
    """A sparse file that fills the system's cache when it is read, until other files need the memory."""

    def __init__(self, folder: Path) -> None:
        self.memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        self.file = folder / "ballast"
        with open(self.file, "wb") as stream:
            stream.truncate(4 * self.memory)  # takes no space on disk
        self.position = 0

    def filling(self, size: int | None = None) -> str:
        """Return Python code that fills `size` bytes of free memory and a reserve. Default: all memory."""
        size = self.memory if size is None else size + _SPARE
        start, self.position = self.position, (self.position + size) % (2 * self.memory)
        return f"fill({str(self.file)!r}, {start}, {size})"


def copying(source: Path, target: Path) -> str:
    """Return Python code that copies a folder with `cp`."""
    return f"import subprocess; subprocess.run(['cp', '-r', {str(source)!r}, {str(target)!r}], check=True)"


def widening(source: Path, target: Path, factors: str, *, sync: bool) -> str:
    """Return Python code that widens a checkpoint; without `sync` it does not wait for the disk, like `cp`."""
    axes = dict(part.split("=") for part in factors.split(",")) if "=" in factors else {}
    arguments = f"axes={ {name: int(value) for name, value in axes.items()}!r}" if axes else f"factor={factors}"
    lines = ["import os, mupscale_cli as m", *([] if sync else ["os.fsync = lambda handle: None"])]
    lines.append(
        f"m.widen({str(source)!r}, {str(target)!r}, {arguments}, verify=False, max_shard_size=10**13, processes=None, "
        f"optimizer_kind={kinds(source)})"
    )
    return "\n".join(lines)


def process(*arguments: str) -> str:
    """Return Python code that runs another Python process."""
    return f"import subprocess; subprocess.run([sys.executable, *{arguments!r}], check=True, capture_output=True)"


_TORCH = process("-c", "import torch")


def command(source: Path, target: Path, factors: str) -> str:
    """Return Python code that runs `mupscale widen`."""
    axes = [word for part in factors.split(",") for word in ("--axis", part)] if "=" in factors else ["-f", factors]
    where = (str(source), "-o", str(target), "--max-shard-size", "10TB")
    kind = [word for name in kinds(source) for word in ("--optimizer-kind", name)]
    return process("-m", "mupscale_cli", "widen", *where, *axes, *kind, "--no-verify")


def measured(factors: str, state: str, options: argparse.Namespace, ballast: Ballast) -> list[tuple[Any, ...]]:
    """Return the table rows of a case. Runs of `cp` and widening alternate, because disks and machines are noisy."""
    rows = []
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        source, wide, copy = (Path(name) / each for each in ("narrow", "wide", "copy"))
        # Adam's moments in float32 make a bfloat16 checkpoint five times as large.
        size = options.megabytes * 10**6 // (1 if state == "none" else 5)
        save_llama(source, size, hidden=options.hidden)
        if state != "none":
            save_adam(source, state)
        libraries = f"{_LIBRARIES}\n{_OF_STATES.get(state, '')}"
        code = f"{libraries}\n{widening(source, wide, factors, sync=False)}"
        beyond = (peak_private_bytes(code) - peak_private_bytes(libraries)) / 1e6
        size = sum(file.stat().st_size for file in wide.rglob("*") if file.is_file())
        for written in options.written:
            sync = written != "buffered"
            runs = []
            for _ in range(options.repetitions):
                synced = copy if sync else None
                wall, cpu = timed(copying(wide, copy), ballast.filling(2 * size), libraries, synced)
                shutil.rmtree(copy)
                shutil.rmtree(wide)
                if written == "command":
                    ours, ours_cpu = timed(command(source, wide, factors), ballast.filling(2 * size), libraries)
                    wall_of_torch, cpu_of_torch = timed(_TORCH)
                    ours, ours_cpu = ours - wall_of_torch, ours_cpu - cpu_of_torch
                else:
                    ours, ours_cpu = timed(
                        widening(source, wide, factors, sync=sync), ballast.filling(2 * size), libraries
                    )
                runs.append((wall, ours, ours / wall, ours_cpu / cpu))
            *seconds, walls, cpus = zip(*runs, strict=True)
            results = (*map(statistics.median, (*seconds, walls)), min(walls), max(walls))
            results += (statistics.median(cpus), beyond, min(seconds[1]) / min(seconds[0]))
            rows.append((factors, state, f"{size / 1e9:.2f} GB", written, *results))
            sys.stderr.write(" ".join(f"{value:.3g}" if isinstance(value, float) else value for value in rows[-1]))
            sys.stderr.write("\n")
    return rows


def main() -> None:
    """Run the benchmark and print its results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=430, help="size of the narrow checkpoint in MB")
    parser.add_argument("--factors", nargs="*", default=["2", "4", "3", "kv=2,ffn=4"], help="numbers, or AXIS=K,...")
    parser.add_argument("--hidden", type=int, default=1024, help="hidden size of the narrow model")
    parser.add_argument("--states", nargs="*", default=list(STATES), help="formats of optimizer state, widened by 2")
    parser.add_argument("--written", nargs="+", default=list(WRITTEN))
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="output folder. Default: a temporary folder.")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    cases = [(factors, "none") for factors in options.factors] + [("2", state) for state in options.states]
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        ballast = Ballast(Path(name))
        timed(ballast.filling())
        for factors, state in cases:
            rows += measured(factors, state, options, ballast)
    columns = ("factor", "state", "output", "written", "cp, s", "widen, s")
    columns += ("wall / cp", "lowest", "highest", "CPU / cp", "MB beyond torch", "lowest / lowest")
    report(columns, rows, as_json=options.json)
    if not options.json:
        hardware = f"{os.cpu_count()} x {platform.processor() or platform.machine()}"
        sys.stdout.write(
            f"{hardware}, {platform.system()}, Python {platform.python_version()}, torch {torch.__version__}\n"
        )


if __name__ == "__main__":
    main()

"""Where the time of `mupscale widen` with its default options goes, relative to `cp` of the output and a flush to disk.

The model is a Llama of 258 million parameters in bfloat16, with an embedding and a readout of 32,000 tokens. Phases
begin when the command names them on stderr; processor time includes that of processes that have ended.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import peak_private_bytes, report, save_llama
from throughput import Ballast, copying, timed

Seconds = tuple[float, float]  # wall and processor
_TICKS = os.sysconf("SC_CLK_TCK")


def phases(source: Path, target: Path, factor: str) -> dict[str, Seconds]:
    """Run `mupscale widen`; return the time of each phase in their order, the first of which has no name on stderr."""
    line = [sys.executable, "-m", "mupscale_cli", "widen", str(source), "-f", factor, "-o", str(target)]
    started, name, found = (time.perf_counter(), 0.0), "start and plan", {}
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for text in process.stderr:
            now = time.perf_counter(), _processor_seconds(process.pid)
            found[name] = (now[0] - started[0], now[1] - started[1])
            name, started = text.partition(" (")[0].strip(), now
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    found[name] = (time.perf_counter() - started[0], usage.ru_utime + usage.ru_stime - started[1])
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, line)
    return found


def _processor_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS  # its own and its ended children's, as user and as system


def main() -> None:
    """Run the benchmark and print its results. Runs of `cp` and widening alternate, because machines are noisy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--factors", nargs="+", default=["2", "3"])
    parser.add_argument("--megabytes", type=int, default=386, help="size of the layers of the narrow model in MB")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="also measure the peak memory, in a run of its own")
    parser.add_argument("--folder", type=Path, help="output folder. Default: a temporary folder.")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows: list[tuple[Any, ...]] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        source, wide, copy = (Path(name) / each for each in ("narrow", "wide", "copy"))
        save_llama(source, options.megabytes * 10**6, vocabulary=32000, is_tied=False)
        ballast = Ballast(Path(name))
        timed(ballast.filling())
        for factor in options.factors:
            runs: list[dict[str, Seconds]] = []
            copies: list[Seconds] = []
            for _ in range(options.repetitions):
                shutil.rmtree(wide, ignore_errors=True)
                timed(ballast.filling(2 * 10**9))
                runs.append(phases(source, wide, factor))
                shutil.rmtree(copy, ignore_errors=True)
                copies.append(timed(copying(wide, copy), ballast.filling(2 * 10**9), synced=copy))
                sys.stderr.write(f"x{factor}: {runs[-1]}, cp {copies[-1]}\n")
            cp, cp_processor = (statistics.median(each) for each in zip(*copies, strict=True))
            for phase in runs[0]:
                wall, processor = (statistics.median(run[phase][part] for run in runs) for part in (0, 1))
                rows.append((factor, phase, wall, wall / cp, processor))
            walls, processors = ([sum(each[part] for each in run.values()) for run in runs] for part in (0, 1))
            ratios = sorted(wall / one for wall, (one, _) in zip(walls, copies, strict=True))
            total = statistics.median(walls), statistics.median(ratios), statistics.median(processors)
            rows.append((factor, f"all ({ratios[0]:.2f} to {ratios[-1]:.2f} times cp)", *total))
            size = sum(file.stat().st_size for file in wide.rglob("*") if file.is_file())
            rows.append((factor, f"cp and flush of {size / 1e9:.2f} GB", cp, 1.0, cp_processor))
            if options.memory:
                shutil.rmtree(wide)
                code = "import sys; from mupscale_cli.cli.main import main; main()"
                peak = peak_private_bytes(code, "widen", str(source), "-f", factor, "-o", str(wide))
                rows.append((factor, "peak memory, GB", peak / 1e9, "", ""))
            shutil.rmtree(copy)
    report(("factor", "phase", "seconds", "of cp and flush", "processor seconds"), rows, as_json=options.json)


if __name__ == "__main__":
    main()

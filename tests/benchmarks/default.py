"""Where the time of `mupscale widen` with its default options goes, relative to `cp` of the output and a flush to disk.

The model is a Llama of 259 million parameters in bfloat16, with an embedding and a readout of 32,000 tokens. Phases
begin when the command names them on stderr. Memory is that of all processes: their own, with files that they map.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import peak_private_bytes, report, save_llama
from throughput import Ballast, copying, timed


def phases(source: Path, target: Path, factor: str, *options: str) -> dict[str, float]:
    """Run `mupscale widen`; return the seconds of each phase in its order, the first of them before any is named."""
    line = [sys.executable, "-m", "mupscale_cli", "widen", str(source), "-f", factor, "-o", str(target), *options]
    started = time.perf_counter()
    name, found = "start and plan", {}
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for text in process.stderr:
            now = time.perf_counter()
            found[name] = now - started
            name, started = text.partition(" (")[0].strip(), now
    found[name] = time.perf_counter() - started
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, line)
    return found


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
    rows = []
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        source, wide, copy = (Path(name) / each for each in ("narrow", "wide", "copy"))
        save_llama(source, options.megabytes * 10**6, vocabulary=32000, is_tied=False)
        ballast = Ballast(Path(name))
        timed(ballast.filling())
        for factor in options.factors:
            runs: list[dict[str, float]] = []
            copies = []
            for _ in range(options.repetitions):
                shutil.rmtree(wide, ignore_errors=True)
                timed(ballast.filling(2 * 10**9))
                runs.append(phases(source, wide, factor))
                shutil.rmtree(copy, ignore_errors=True)
                copies.append(timed(copying(wide, copy), ballast.filling(2 * 10**9), synced=copy)[0])
            cp = statistics.median(copies)
            for phase in runs[0]:
                seconds = statistics.median(run[phase] for run in runs)
                rows.append((factor, phase, seconds, seconds / cp))
            ratios = [sum(run.values()) / one for run, one in zip(runs, copies, strict=True)]
            rows.append(
                (factor, "all", statistics.median(sum(run.values()) for run in runs), statistics.median(ratios))
            )
            rows.append((factor, "all, lowest and highest", *(sorted(ratios)[i] for i in (0, -1))))
            size = sum(file.stat().st_size for file in wide.rglob("*") if file.is_file())
            rows.append((factor, f"cp and flush of {size / 1e9:.2f} GB", cp, 1.0))
            if options.memory:
                shutil.rmtree(wide)
                code = "import sys; from mupscale_cli.cli.main import main; main()"
                peak = peak_private_bytes(code, "widen", str(source), "-f", factor, "-o", str(wide))
                rows.append((factor, "peak memory, GB", peak / 1e9, 0.0))
            shutil.rmtree(copy)
    report(("factor", "phase", "seconds", "of cp and flush"), rows, as_json=options.json)


if __name__ == "__main__":
    main()

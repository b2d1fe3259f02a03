"""Start-up time of commands that need no torch, relative to that of Python itself."""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from measure import command_seconds, report, save_expert_headers, save_headers, save_llama


def main() -> None:
    """Run the benchmark and print its results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    python = statistics.median(command_seconds("-c", "pass")[0] for _ in range(options.repetitions))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        source = str(save_llama(Path(folder) / "narrow", 25 * 10**6))
        large = str(save_headers(Path(folder) / "501B-in-1000-shards", 1000, 156))
        experts = str(save_expert_headers(Path(folder) / "1T-of-experts", 62, 61, 384))
        shown_as = {source: "25-MB", large: "501B-in-1000-shards", experts: "1T-of-experts"}
        lines = [["--version"], ["--help"], ["recipes", "list"], ["inspect", source], ["hparams", source]]
        lines += [["widen", "missing", "--factor", "2"]]
        plans = ["--factor", "2", "--dry-run", "--no-verify"]  # otherwise the model's class is imported
        lines += [["widen", checkpoint, *plans] for checkpoint in (source, large, experts)]
        for line in lines:
            runs = [command_seconds("-m", "mupscale_cli", *line) for _ in range(options.repetitions)]
            walls, processors = zip(*runs, strict=True)
            seconds = statistics.median(walls)
            shown = " ".join(shown_as.get(word, word) for word in line)
            rows.append((shown, seconds, statistics.median(processors), seconds / python, max(walls) / min(walls)))
    columns = ("command", "seconds", "processor seconds", "ratio to `python -c pass`", "spread")
    report(columns, rows, as_json=options.json)


if __name__ == "__main__":
    main()

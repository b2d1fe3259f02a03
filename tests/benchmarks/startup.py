"""Start-up time of commands that need no torch, relative to that of Python itself."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from measure import command_seconds, repeated, report, save_headers, save_llama


def main() -> None:
    """Run the benchmark and print its results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    python, _ = repeated(lambda: command_seconds("-c", "pass"), options.repetitions)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        source = str(save_llama(Path(folder) / "narrow", 25 * 10**6))
        large = str(save_headers(Path(folder) / "501B-in-1000-shards", 1000, 156))
        shown_as = {source: "25-MB", large: "501B-in-1000-shards"}
        lines = [["--version"], ["--help"], ["recipes", "list"]]
        lines += [["widen", checkpoint, "--factor", "2", "--dry-run"] for checkpoint in (source, large)]
        for line in lines:
            seconds, spread = repeated(
                lambda line=line: command_seconds("-m", "mupscale_cli", *line), options.repetitions
            )  # type: ignore[misc]
            shown = " ".join(shown_as.get(word, word) for word in line)
            rows.append((shown, seconds * 1000, seconds / python, spread))
    report(("command", "ms", "ratio to `python -c pass`", "spread"), rows, as_json=options.json)


if __name__ == "__main__":
    main()

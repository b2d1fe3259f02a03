"""Start-up time of commands that need no torch, as a ratio to that of Python itself."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from measure import command_seconds, repeated, report, save_llama


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    python, _ = repeated(lambda: command_seconds("-c", "pass"), options.repetitions)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        source = str(save_llama(Path(folder) / "narrow", 25 * 10**6))
        for line in (["--version"], ["--help"], ["recipes", "list"], ["widen", source, "--factor", "2", "--dry-run"]):
            seconds, spread = repeated(
                lambda line=line: command_seconds("-m", "mupscale_cli", *line), options.repetitions
            )  # type: ignore[misc]
            shown = " ".join(word if word != source else "CKPT" for word in line)
            rows.append((shown, seconds * 1000, seconds / python, spread))
    report(("command", "ms", "ratio to `python -c pass`", "spread"), rows, as_json=options.json)


if __name__ == "__main__":
    main()

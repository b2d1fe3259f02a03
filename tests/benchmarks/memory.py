"""Peak memory of widening beyond that of Python and torch, for checkpoints of several sizes."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from measure import kinds, peak_private_bytes, report, save_adam, save_llama

PROMISE = 150  # MB


def main() -> None:
    """Run the benchmark and print its results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[50, 200, 800])
    parser.add_argument("--factor", type=int, default=2)
    parser.add_argument("--state", choices=["none", "safetensors", "pt"], default="none", help="format of Adam's state")
    parser.add_argument("--processes", type=int, help="number of processes. Default: chosen by size.")
    parser.add_argument("--folder", type=Path, help="output folder. Default: a temporary folder.")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    libraries = peak_private_bytes("import torch, mupscale_cli.tasks.widen, mupscale_cli.engine.shards")
    rows = []
    for megabytes in options.megabytes:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            source = save_llama(Path(folder) / "narrow", megabytes * 10**6)
            if options.state != "none":
                save_adam(source, options.state)
            arguments = f"factor={options.factor}, verify=False, processes={options.processes}"
            arguments += f", optimizer_kind={kinds(source)}"
            code = f"import mupscale_cli as m; m.widen({str(source)!r}, {arguments})"
            beyond = (peak_private_bytes(code) - libraries) / 1e6
            size = (source / "model.safetensors").stat().st_size / 1e6
        rows.append((f"{size:.0f} MB", f"{size * options.factor**2:.0f} MB", beyond, PROMISE))
    report(("narrow", "wide", "MB beyond the libraries", "promised"), rows, as_json=options.json)


if __name__ == "__main__":
    main()

"""Time of a verified `widen` with the class compared before the first byte, relative to one without.

Processor seconds within one process, after the imports. Without the comparison, verification builds the class once more
for each model that it loads, to know its size.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from measure import repeated, report, save_llama

import mupscale_cli
from mupscale_cli.verification import fitting

_HIDDEN = 128
_BYTES_PER_LAYER = 12 * _HIDDEN * _HIDDEN * 2
_CHECK = "mupscale_cli.tasks.widen.require_class"


def main() -> None:
    """Run the benchmark and print its results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 100])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for layers in options.layers:
            narrow = save_llama(Path(name) / f"{layers}-layers", layers * _BYTES_PER_LAYER, hidden=_HIDDEN)
            wide = Path(name) / f"{layers}-layers-wide"

            def seconds(widen: Callable[[], object]) -> float:
                fitting.compare_with_transformers.cache_clear()
                started = time.process_time()
                widen()
                return time.process_time() - started

            def checked(narrow: Path = narrow, wide: Path = wide) -> None:
                assert mupscale_cli.widen(narrow, wide, 2, overwrite=True).verification.agrees

            def unchecked(checked: Callable[[], None] = checked) -> None:
                with mock.patch(_CHECK, return_value=False):
                    checked()

            checked()  # imports
            with_check = seconds(checked)
            ratio, spread = repeated(
                lambda seconds=seconds, checked=checked, unchecked=unchecked: seconds(checked) / seconds(unchecked),  # type: ignore[misc]
                options.repetitions,
            )
            rows.append((f"{layers} layers", with_check, ratio, spread))
    columns = ("model", "processor seconds with it", "ratio", "spread")
    report(columns, rows, as_json=options.json)


if __name__ == "__main__":
    main()

"""Widen a tiny random model of every family in every way, and write the errors into recipes/README.md.

    python tests/family_table.py             # all of them, about 15 minutes
    python tests/family_table.py Llama GPT2  # only these, printed and not written

Each model goes from disk to disk: every axis at once, those of a bare factor by 2 and by 3, each axis
alone by 2 and by 3, and every way to treat a tied readout. Both models are compared in float64, as the
reference implementation computes them. Exits with 1 if any differs.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
import transformers

from helpers import MODELS, save_model
from mupscale_cli.tasks.check import EXACT, RecipeCheck, Trial, check_model
from mupscale_cli.tasks.planning import identity_plan
from mupscale_cli.tasks.source import find_source

README = Path(__file__).parent.parent / "recipes" / "README.md"
BEGIN, END = "<!-- table: tests/family_table.py -->\n", "<!-- end of the table -->\n"


def row(case: str) -> tuple[str, RecipeCheck]:
    """Check a family and return its line of the table."""
    with tempfile.TemporaryDirectory(prefix="mupscale-") as folder:
        source = save_model(Path(folder) / "narrow", case)
        plan = identity_plan(find_source(source).checkpoint)
        checked = check_model(source)
    default = [axis for axis in plan.recipe.widen if axis in plan.used]
    wholes = [
        _worst(t for t in checked.trials if t.tie is None and t.factors == dict.fromkeys(default, f)) for f in (2, 3)
    ]
    together = [dict.fromkeys(default, factor) for factor in (2, 3)]
    plain = [trial for trial in checked.trials if trial.tie is None]
    single = [trial for trial in plain if trial.factors not in together] or plain  # some models have one axis only
    axes = [axis for axis in plan.recipe.axis_names if axis in plan.used and axis not in plan.recipe.fixed]
    ways = ", ".join(dict.fromkeys([plan.tie, *(t.tie for t in checked.trials if t.tie)])) if plan.tie else "untied"
    model_class, config_class, _ = MODELS[case]
    model_type = getattr(transformers, config_class).model_type
    cells = (
        model_type,
        model_class,
        plan.recipe.name,
        ways,
        " ".join(axes),
        *wholes,
        _worst(single),
        _worst(t for t in checked.trials if t.tie) if plan.tie else "",
    )
    return f"| {' | '.join(cells)} |", checked


def _worst(trials: Sequence[Trial]) -> str:
    found = list(trials)
    if any(trial.problem for trial in found):
        return "**differs**"
    errors = [trial.error for trial in found if trial.error is not None]
    return f"{max(errors):.0e}" if errors else ""


def table(rows: Sequence[str]) -> str:
    """Return the table: a heading and the sorted rows."""
    heads = ("model type", "class", "recipe", "readout", "axes", "all x2", "all x3", "each axis alone", "other ways")
    versions = f"transformers {transformers.__version__}, torch {torch.__version__.partition('+')[0]}"
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", *sorted(set(rows), key=str.lower)]
    heading = f"{len(rows)} models (equal rows once), {versions}, all below {EXACT:.0e}:"
    return f"{heading}\n\n" + "\n".join(lines) + "\n"


def main() -> None:
    """Create the table, and write it to recipes/README.md if it contains every family."""
    chosen = [case for case in MODELS if not sys.argv[1:] or case.startswith(tuple(sys.argv[1:]))]
    rows, wrong = [], []
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for case, (line, checked) in zip(chosen, pool.map(row, chosen), strict=True):
            rows.append(line)
            problems = [
                *checked.mistakes,
                *(f"{trial.factors}: {trial.problem}" for trial in checked.trials if trial.problem),
            ]
            wrong += [f"{case}: {problem}" for problem in problems]
            print(line, *problems, sep="\n    ", flush=True)  # noqa: T201 (a script)
    if wrong:
        sys.exit("\n".join(wrong))
    if len(chosen) == len(MODELS):
        text = README.read_text()
        before, after = text.partition(BEGIN)[0], text.partition(END)[2]
        README.write_text(f"{before}{BEGIN}{table(rows)}{END}{after}")


if __name__ == "__main__":
    main()

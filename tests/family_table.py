"""Widen a tiny random model of every family in every way, and write the errors into recipes/README.md.

    python tests/family_table.py             # all models of transformers, about 30 minutes
    python tests/family_table.py --new       # only those that the table lacks
    python tests/family_table.py Llama GPT2  # only these, printed and not written
    python tests/family_table.py --others    # all models of other libraries, as far as they are installed

Each model goes from disk to disk: every axis at once, those of a bare factor by 2 and by 3, each axis
alone by 2 and by 3, and every way to treat a tied readout. Both models are compared in float64, as the
reference implementation computes them. Exits with 1 if any differs, and leaves it out of the table.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import transformers
from other_libraries import CONFIGS, save_tiny

from helpers import MODELS, save_model
from mupscale_cli.checkpoints.libraries import library_of
from mupscale_cli.tasks.check import EXACT, RecipeCheck, Trial, check_model
from mupscale_cli.tasks.planning import identity_plan
from mupscale_cli.tasks.source import find_source

README = Path(__file__).parent.parent / "recipes" / "README.md"
END = "<!-- end of the table -->\n"


@dataclass(frozen=True)
class Table:
    """A table of models, and how to save one.

    Attributes:
        command: the command that makes it.
        cases: its models.
        save: saves a model in a folder and returns the folder.
        names: returns what a config is chosen by, and the class or the library.
        heads: headings of these two columns.
        libraries: the libraries whose versions it gives.
    """

    command: str
    cases: Sequence[str]
    save: Callable[[Path, str], Path]
    names: Callable[[str], tuple[str, str]]
    heads: tuple[str, str]
    libraries: tuple[str, ...]

    @property
    def begin(self) -> str:
        return f"<!-- table: {self.command} -->\n"


def _transformers_names(case: str) -> tuple[str, str]:
    model_class, config_class, _ = MODELS[case]
    return getattr(transformers, config_class).model_type, model_class


def _other_names(case: str) -> tuple[str, str]:
    library = library_of(CONFIGS[case])
    value = CONFIGS[case][library.key]
    return value if isinstance(value, str) else case.partition("-")[2], library.name


TABLES = {
    "": Table(
        "tests/family_table.py",
        tuple(MODELS),
        save_model,
        _transformers_names,
        ("model type", "class"),
        ("transformers",),
    ),
    "--others": Table(
        "tests/family_table.py --others",
        tuple(CONFIGS),
        lambda folder, case: save_tiny(case, folder),
        _other_names,
        ("architecture", "library"),
        ("timm", "open_clip"),
    ),
}


def row(option: str, case: str) -> tuple[str, RecipeCheck]:
    """Check a family and return its line of the table."""
    with tempfile.TemporaryDirectory(prefix="mupscale-") as folder:
        source = TABLES[option].save(Path(folder) / "narrow", case)
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
    cells = (
        *TABLES[option].names(case),
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


def text_of(table: Table, rows: Sequence[str]) -> str:
    """Return a table as text: a heading and the sorted rows."""
    heads = (*table.heads, "recipe", "readout", "axes", "all x2", "all x3", "each axis alone", "other ways")
    numbers = (f"{name} {importlib.import_module(name).__version__}" for name in table.libraries)
    versions = f"{', '.join(numbers)}, torch {torch.__version__.partition('+')[0]}"
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", *sorted(set(rows), key=str.lower)]
    heading = f"{len(set(rows))} kinds of models (equal rows once), {versions}, all below {EXACT:.0e}:"
    return f"{heading}\n\n" + "\n".join(lines) + "\n"


def main() -> None:
    """Create a table, and write it to recipes/README.md."""
    options = {word for word in sys.argv[1:] if word.startswith("--")}
    option = "--others" if "--others" in options else ""
    wanted = tuple(word for word in sys.argv[1:] if word not in options)
    table = TABLES[option]
    before, _, rest = README.read_text().partition(table.begin)
    written, _, after = rest.partition(END)
    kept = [line for line in written.splitlines()[4:] if line] if "--new" in options else []
    known = {tuple(cell.strip() for cell in line.split("|")[1:3]) for line in kept}
    chosen = [
        case for case in table.cases if table.names(case) not in known and (not wanted or case.startswith(wanted))
    ]
    rows, wrong = [], []
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for case, (line, checked) in zip(chosen, pool.map(partial(row, option), chosen), strict=True):
            problems = [
                *checked.mistakes,
                *(f"{trial.factors}: {trial.problem}" for trial in checked.trials if trial.problem),
            ]
            rows += [] if problems else [line]
            wrong += [f"{case}: {problem}" for problem in problems]
            print(line, *problems, sep="\n    ", flush=True)  # noqa: T201 (a script)
    if not wanted:
        README.write_text(f"{before}{table.begin}{text_of(table, [*kept, *rows])}{END}{after}")
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()

"""Grow a tiny random model of every family to any size, and write the errors into recipes/README.md.

    python tests/size_table.py             # all of them, about an hour
    python tests/size_table.py --new       # only those that the table lacks
    python tests/size_table.py Llama GPT2  # only these, printed and not written

Each model goes from disk to disk: the residual stream to 1.5 times its size and to an odd size, heads and feed-forward
layer to 1.5 times, heads of 2 and 3 times the dimensions, one block more and twice as many blocks in the first stack,
and all axes to unrelated sizes. Both models are compared in float64, as the reference implementation computes them.
A letter stands for the reason why a size is impossible. Exits with 1 if any model differs, and leaves it out.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from pathlib import Path
from string import ascii_lowercase

import torch

from helpers import MODELS, save_model
from mupscale_cli.engine.threads import one_thread
from mupscale_cli.errors import MupscaleError, PlanError
from mupscale_cli.plan import Plan
from mupscale_cli.plan.depth import stack_sizes
from mupscale_cli.tasks.check import EXACT, Factors, run_trial, smallest_factors, unrelated_sizes
from mupscale_cli.tasks.planning import identity_plan, plan_widening
from mupscale_cli.tasks.source import Source, find_source

README = Path(__file__).parent.parent / "recipes" / "README.md"
BEGIN, END = "<!-- table: tests/size_table.py -->\n", "<!-- end of the table of sizes -->\n"
STREAM, HEADS, NEURONS, HEAD = (
    ("embed", "text.embed", "c"),
    ("kv", "text.kv", "h", "ng"),
    ("ffn", "text.ffn", "i"),
    ("d", "text.d"),
)
HALF = Fraction(3, 2)
_LETTERS = [*ascii_lowercase, *map("".join, itertools.product(ascii_lowercase, repeat=2))]
# What to leave out of messages, in this order, so that equal reasons have equal texts.
_SHORTER = {
    r"^.*? (?:units|sizes): |^recipes/\S+ |^cannot add blocks.*?: |^the axis `[\w.]+` (?=has different)": "",
    r"^the factors of linked axes do not match: in `\w+`, (.*), but .*": r"\1",
    r"^`[^`]*[.][^`]*` normalizes": "a norm normalizes",
    r",? `[^`]*[.][^`]*`,?": "",
    r"(?<=in different tensors) \([\d, .]+\)": "",
}
# A column is a name, the axes of which the first one that a model has grows, and its factor; None for an odd size.
COLUMNS: tuple[tuple[str, tuple[str, ...], Fraction | int | None], ...] = (
    ("stream x1.5", STREAM, HALF),
    ("stream odd", STREAM, None),
    ("heads x1.5", HEADS, HALF),
    ("ffn x1.5", NEURONS, HALF),
    ("head size x2", HEAD, 2),
    ("head size x3", HEAD, 3),
)
DEPTHS: tuple[tuple[str, Callable[[int], int]], ...] = (
    ("layers +1", lambda layers: layers + 1),
    ("layers x2", lambda layers: 2 * layers),
)


def families() -> tuple[str, ...]:
    """Return one case for each class of configs."""
    first: dict[str, str] = {}
    for case, (_, config_class, _) in MODELS.items():
        first.setdefault(config_class, case)
    return tuple(first.values())


def size_cells(case: str) -> list[str]:
    """Grow a family and return its cells: errors, reasons why a size is impossible, or nothing."""
    with tempfile.TemporaryDirectory(prefix="mupscale-") as folder, one_thread():
        source = find_source(save_model(Path(folder) / "narrow", case, dtype=torch.float64))
        plan = identity_plan(source.checkpoint)
        cells = [_cell(source, _growth(source, plan, axes, factor)) for _, axes, factor in COLUMNS]
        deeper = [_cell(source, _deeper(source, plan, size)) for _, size in DEPTHS]
        return [plan.recipe.name, *cells, *deeper, _cell(source, unrelated_sizes(plan.recipe, source.checkpoint))]


def _growth(source: Source, plan: Plan, names: Iterable[str], factor: Fraction | int | None) -> Factors | str | None:
    """Return the factors that grow an axis, or why that is impossible; None if the model has no such axis."""
    axis = next((axis for axis in plan.axes if axis.name in names and axis.name in plan.used), None)
    if axis is None:
        return None
    if axis.name in plan.recipe.fixed:
        return plan.recipe.fixed[axis.name]
    try:
        if axis.size is None:  # one name for several sizes
            plan_widening(source, axes={axis.name: factor or HALF})
            return {axis.name: factor or HALF}
        ratio = Fraction(axis.size + axis.size // 2 + 1, axis.size) if factor is None else factor
        found = smallest_factors(plan.recipe, source.checkpoint, axis.name, ratio)
        if found is None:
            plan_widening(source, axes={axis.name: ratio})  # says what the config cannot express
    except MupscaleError as error:
        return _reason(error.message)
    return found


def _deeper(source: Source, plan: Plan, wide_size: Callable[[int], int]) -> Factors | str | None:
    """Return the number of blocks of the first stack, or why it cannot grow; None if the model has no stack."""
    sizes = stack_sizes(plan.recipe, [tensor.source.name for tensor in plan.tensors], plan.config)
    if not sizes:
        return None
    stack, size = next(iter(sizes.items()))
    request: Factors = {stack: Fraction(wide_size(size), size)}
    try:
        plan_widening(source, axes=request)
    except PlanError as error:
        return _reason(error.message)
    return request


def _reason(message: str) -> str:
    """Return why sizes are impossible, without the names and numbers of this model."""
    for pattern, text in _SHORTER.items():
        message = re.sub(pattern, text, message)
    return message


def _cell(source: Source, growth: Factors | str | None) -> str:
    if growth is None or isinstance(growth, str):
        return growth or ""
    trial = run_trial(source, None, growth, None, None)
    return f"**{trial.problem}**" if trial.problem or trial.error is None else f"{trial.error:.0e}"


def table(rows: Mapping[str, Sequence[str]]) -> str:
    """Return the table with a letter for each reason, and the reasons."""
    cells = [cell for row in rows.values() for cell in row[1:]]
    reasons = sorted({cell for cell in cells if cell and not _is_error(cell)}, key=lambda one: (-cells.count(one), one))
    letters = dict(zip(reasons, _LETTERS, strict=False))
    heads = ("case", "recipe", *(name for name, *_ in (*COLUMNS, *DEPTHS)), "all sizes")
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    lines += [f"| {' | '.join([case, *(letters.get(cell, cell) for cell in row)])} |" for case, row in rows.items()]
    lines += ["", *(f"- {letter}: {reason}" for reason, letter in letters.items())]
    return "\n".join(lines) + "\n"


def read_table(text: str) -> dict[str, list[str]]:
    """Return the cells of each case from the text of the table, with reasons in full."""
    reasons = dict(re.findall(r"^- ([a-z]+): (.*)$", text, re.MULTILINE))
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in text.splitlines() if line.startswith("| ")]
    return {case: [recipe, *(reasons.get(cell, cell) for cell in cells)] for case, recipe, *cells in rows[1:]}


def _is_error(cell: str) -> bool:
    return re.fullmatch(r"\de[-+]\d\d", cell) is not None


def kinds(row: Sequence[str]) -> list[str]:
    """Return a row with `exact` in place of each error that is as small as rounding."""
    return ["exact" if _is_error(cell) and float(cell) < EXACT else cell for cell in row]


def main() -> None:
    """Create the table, and write it to recipes/README.md."""
    before, _, rest = README.read_text().partition(BEGIN)
    written, _, after = rest.partition(END)
    rows: dict[str, list[str]] = read_table(written) if "--new" in sys.argv else {}
    wanted = tuple(word for word in sys.argv[1:] if word != "--new")
    chosen = [case for case in families() if case not in rows and (not wanted or case.startswith(wanted))]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for case, row in zip(chosen, pool.map(size_cells, chosen), strict=True):
            if not any(cell.startswith("**") for cell in row):
                rows[case] = row
            print(case, *row, sep=" | ", flush=True)  # noqa: T201 (a script)
    if not wanted:
        rows = {case: rows[case] for case in families() if case in rows}
        README.write_text(f"{before}{BEGIN}{table(rows)}{END}{after}")
    if different := [case for case in chosen if case not in rows]:
        sys.exit(f"models that differ: {', '.join(different)}")


if __name__ == "__main__":
    main()

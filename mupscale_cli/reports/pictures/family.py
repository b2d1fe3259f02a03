"""Write one self-contained HTML page about a family of sizes, as `mupscale run --report` does."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mupscale_cli.reports.pictures.page import caption, details, escaped, number, page, paragraph, section, table
from mupscale_cli.reports.pictures.report import COMPARISONS, SIZES, introduction, source_name, verdict_text
from mupscale_cli.text import count_text

if TYPE_CHECKING:
    from mupscale_cli.record.types import Record


def family(title: str, records: Mapping[str, Record]) -> str:
    """Return the page.

    Args:
        title: the name of the job.
        records: the record (mupscale.json) of each model, by its path, in the order in which they were made.

    Returns:
        An HTML document that depends only on the arguments: it has no dates or names of machines.
    """
    count = "1 model" if len(records) == 1 else f"{len(records)} models"
    head = f"<header>\n<h1>{escaped(title)}: {count}</h1>\n{paragraph(introduction(None))}\n</header>"
    commands = "\n".join(f"mupscale verify {shlex.quote(path)} --steps 20" for path in records)
    sections = (
        head,
        section("Sizes", caption(SIZES), _sizes(records)),
        section("What was compared", caption(COMPARISONS), _verdicts(records)),
        section("Reproduce", f"<pre>{escaped(commands)}</pre>"),
        section("All figures", *(details(f"{path} (mupscale.json)", record) for path, record in records.items())),
    )
    return page(f"{title}: {count}", sections)


def _sizes(records: Mapping[str, Record]) -> str:
    axes = tuple(dict.fromkeys(axis for record in records.values() for axis in record["axes"]))
    rows = [_row(path, record, axes) for path, record in records.items()]
    return table(("model", "made from", "parameters", *axes, "noise"), rows, ("parameters", *axes, "noise"))


def _row(path: str, record: Record, axes: Sequence[str]) -> tuple[object, ...]:
    noise = record["perturbation"]
    sizes = (record["axes"].get(axis) for axis in axes)
    return (
        path,
        source_name(record),
        count_text(record["parameters"]["after"]),
        *("" if size is None else size["wide_size"] or f"x{size['factor']}" for size in sizes),
        f"{noise['size']:g}" if noise else "none",
    )


def _verdicts(records: Mapping[str, Record]) -> str:
    """Return a table of what was found for each model; one that differs is marked."""
    rows: list[tuple[object, ...]] = []
    for path, record in records.items():
        verification = record["verification"]
        if verification is None:
            rows.append((path, "not verified", "", "", ""))
            continue
        function, training = verification["function"], verification["training"]
        compared = function and (function["unperturbed"] or function)
        worst = max((float(each["max_rel"]) for each in compared["comparisons"]), default=0.0) if compared else None
        row = (
            path,
            verdict_text(verification),
            "" if worst is None else number(worst),
            number(compared["tolerance"]) if compared else "",
            f"{training['steps']} steps, {number(training['max_rel'])}" if training else "",
        )
        rows.append(row if verification["agrees"] else ("!", *row))
    numbers = ("largest relative", "tolerance", "training")
    return table(("model", "found", *numbers), rows, numbers)

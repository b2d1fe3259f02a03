"""Run the experiments: `python tests/experiments/run.py [mlp] [resnet] [gpt] … [--quick] [--figures]`."""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

_HERE = Path(__file__).parent
sys.path.insert(0, str(_HERE.parent))

from experiments import figures  # noqa: E402 (after the path is set)
from experiments.bases import BASES, FACTOR, SEEDS, Bases, BaseTransfer, measure_bases  # noqa: E402
from experiments.cost import measure_cost  # noqa: E402
from experiments.data import documents  # noqa: E402
from experiments.identity import measure_identity  # noqa: E402
from experiments.results import Growth, Optima, Results, Warmstart, fill, load, made_with, save, tables  # noqa: E402
from experiments.shapes import Way, Ways, all_options, all_ways, measure_ways  # noqa: E402
from experiments.speed import measure_speed, tune  # noqa: E402
from experiments.tasks import TASKS, Task  # noqa: E402
from experiments.transfer import measure_transfer, narrow_checkpoint, nearest_power  # noqa: E402
from experiments.warmstart import SHRINKS, SIZES, measure_shrinking  # noqa: E402
from mupscale_cli.engine.threads import one_thread  # noqa: E402

_GROUPS = {
    "mlp": ("mlp-sgd", "mlp-adamw"),
    "resnet": ("resnet",),
    "gpt": ("gpt",),
    "residual": ("residual",),
    "llama": ("llama-adamw", "llama-muon"),
}
_SHRUNK = ("mlp-sgd", "mlp-adamw", "gpt")
_GROWN = (*_SHRUNK, "residual")
_COPIED = (*_GROUPS["mlp"], *_GROUPS["llama"])
_PARTS = ("bases", "optima", "growth", "warmstart", "cost", "ways", "options")
_IDENTITY_STEPS = 40
_BUDGET = 2
_FEW = 5  # ways to compare in a quick run


def measure_optima(task: Task, folder: Path, report: Callable[[str], None]) -> Optima:
    """Measure how closely training without noise is identical, and find the optima at every width.

    Args:
        task: the task.
        folder: a folder for checkpoints.
        report: receives progress messages.
    """
    started = time.monotonic()
    identity = tuple(
        measure_identity(task, folder / f"identity-{factor}", factor, min(_IDENTITY_STEPS, task.steps))
        for factor in (3, 4)
    )
    for result in identity:
        report(f"x{result.factor} without noise: losses differ by {result.difference:.0e}")
    narrow, grid = narrow_checkpoint(task, folder)
    report(f"narrow: {grid.summary}")
    transfers = tuple(measure_transfer(narrow, arm, report) for arm in ("mapped", "standard"))
    return Optima(task.name, task.title, _sizes(task), time.monotonic() - started, identity, grid, transfers)


def measure_growth(task: Task, folder: Path, report: Callable[[str], None]) -> Growth:
    """Compare training of a widened model with the narrow one and with one from scratch.

    Args:
        task: the task.
        folder: a folder for checkpoints.
        report: receives progress messages.
    """
    started = time.monotonic()
    narrow, grid = narrow_checkpoint(task, folder)
    report(f"narrow: {grid.summary}")
    noises, rates = tuned = tune(narrow, task.factors[0])
    report(f"x{task.factors[0]} noise {noises.summary}, lr {rates.summary}")
    speeds, scratch, start = [], {}, rates.best
    for factor in task.factors:
        speed, scratch[factor] = measure_speed(narrow, factor, rates.best, noises.best, start)
        start = scratch[factor].best
        speeds.append(speed)
        report(f"x{factor} scratch: {scratch[factor].summary}; {speed.summary}")
    return Growth(task.name, task.title, _sizes(task), time.monotonic() - started, grid, tuned, tuple(speeds), scratch)


def measure_warmstart(task: Task, folder: Path, report: Callable[[str], None], shrinks: tuple[float, ...]) -> Warmstart:
    """Find the best shrink factor for narrow weights that are padded.

    Args:
        task: the task.
        folder: a folder for checkpoints.
        report: receives progress messages.
        shrinks: the shrink factors to try.
    """
    started = time.monotonic()
    narrow, grid = narrow_checkpoint(task, folder)
    shrinkings = tuple(
        measure_shrinking(narrow, factor, size, nearest_power(narrow.lr), report, shrinks)
        for factor in task.factors
        for size in SIZES
    )
    return Warmstart(task.name, task.title, _sizes(task), time.monotonic() - started, grid, shrinkings)


def compare_ways(
    task: Task,
    folder: Path,
    ways: Sequence[Way],
    report: Callable[[str], None],
    keep: Callable[[Results], None],
    earlier: Ways | None = None,
) -> Ways:
    """Compare ways of growing to a shape at equal compute; keep what has been found after each.

    Args:
        task: the task.
        folder: a folder for checkpoints.
        ways: the ways.
        report: receives progress messages.
        keep: receives the results so far.
        earlier: results of a run that was stopped, whose ways are not measured again.
    """
    began = time.monotonic()
    grid = earlier.narrow if earlier else narrow_checkpoint(task, folder)[1]
    report(f"narrow: {grid.summary}")
    found = earlier or Ways(task.name, task.title, {**_sizes(task), "seeds": str(len(SEEDS))}, 0.0, grid, ())
    started = began - found.seconds
    left = [way for way in ways if way.name not in {grown.way for grown in found.grown}]
    for grown in measure_ways(task, folder, grid.best, left, report):
        found = replace(found, seconds=time.monotonic() - started, grown=(*found.grown, grown))
        keep(found)
    return found


def compare_bases(
    task: Task,
    folder: Path,
    report: Callable[[str], None],
    keep: Callable[[Results], None],
    earlier: Bases | None = None,
    *,
    quick: bool,
) -> Bases:
    """Find the optima along the axis of the base's width; keep what has been found after each width.

    Args:
        task: the task.
        folder: a folder for checkpoints.
        report: receives progress messages.
        keep: receives the results so far.
        earlier: results of a run that was stopped, whose widths are not measured again.
        quick: take two widths and one seed.
    """
    task = task.from_width(task.base)
    bases, seeds = (BASES[:2], SEEDS[:1]) if quick else (BASES, SEEDS)
    sizes = {**_sizes(replace(task, factors=(*bases, FACTOR * bases[-1]))), "seeds": str(len(seeds))}
    sizes |= {"widths": ", ".join(f"x{base}" for base in bases), "factor": f"x{FACTOR}"}
    digest = task.data().digest
    found = earlier or Bases(task.name, task.title, sizes, 0.0, (), digest)
    if found.data and found.data != digest:
        raise SystemExit(f"{task.name} was measured on other data; take that commit's with `--documents`")
    started = time.monotonic() - found.seconds

    def keep_so_far(transfers: tuple[BaseTransfer, ...]) -> None:
        nonlocal found
        found = replace(found, seconds=time.monotonic() - started, transfers=transfers, data=digest)
        keep(found)

    measure_bases(task, folder, report, keep_so_far, bases, seeds, found.transfers)
    return found


def _sizes(task: Task) -> dict[str, str]:
    counts = [sum(p.numel() for p in task.build(factor).parameters()) for factor in dict.fromkeys((1, *task.factors))]
    return {
        "widths": ", ".join(f"x{factor}" for factor in task.factors),
        "parameters, narrow and wide": " … ".join(_short(count) for count in counts),
        "examples per step": str(task.batch_size),
        "steps, narrow + wide": f"{task.narrow_steps} + {task.steps}",
        "seeds": str(len(task.seeds)),
    }


def _short(count: int) -> str:
    return f"{count / 1000:.3g} k" if count < 10**6 else f"{count / 10**6:.3g} M"


def task_of(part: str, name: str, options: argparse.Namespace) -> Task:
    """Return the task as one part of an experiment measures it, by the command's options."""
    task = TASKS[name].quick() if options.quick else TASKS[name]
    if options.documents and task.data is documents:
        task = replace(task, data=partial(documents, options.documents))
    if part == "bases" and options.base_steps is not None:
        title = f"{task.title}, bases of {options.base_steps} steps"
        task = replace(task, name=f"{name}-{options.base_steps}", title=title, narrow_steps=options.base_steps)
    if part in ("ways", "options"):  # four heads can become six, and more steps show more of the new capacity
        task = replace(task, grown_by=4, long_steps=options.budget * task.long_steps)
        if options.budget != _BUDGET:
            times = options.budget / _BUDGET
            task = replace(task, name=f"{name}-{options.budget}", title=f"{task.title}, {times:g} times the budget")
    return task if part in ("bases", "optima", "cost") else task.enlarged()


def measure(
    part: str, task: Task, earlier: Results | None, keep: Callable[[Results], None], only: str, *, quick: bool
) -> Results:
    """Measure one part of an experiment.

    Args:
        part: one of `_PARTS`.
        task: the task.
        earlier: results of a run that was stopped, to go on from. Only parts that take long go on.
        keep: receives what has been found so far, from parts that take long.
        only: a regular expression of the ways to compare.
        quick: take only a few steps.
    """
    started = time.monotonic()

    def report(text: str) -> None:
        sys.stdout.write(f"{task.name} {part} {time.monotonic() - started:6.1f} s  {text}\n")
        sys.stdout.flush()

    with tempfile.TemporaryDirectory() as folder, one_thread():
        if part == "bases":
            return compare_bases(task, Path(folder), report, keep, cast("Bases | None", earlier), quick=quick)
        if part == "optima":
            return measure_optima(task, Path(folder), report)
        if part == "growth":
            return measure_growth(task, Path(folder), report)
        if part == "cost":
            return measure_cost(task, Path(folder), *((task.factors,) if quick else ()))
        if part in ("ways", "options"):
            ways = all_options(task) if part == "options" else all_ways(task)
            ways = ways[-_FEW:] if quick else [way for way in ways if re.search(only, way.name)]
            return compare_ways(task, Path(folder), ways, report, keep, cast("Ways | None", earlier))
        shrinks = SHRINKS[::4] if quick else SHRINKS
        return measure_warmstart(task.with_fewer_seeds(), Path(folder), report, shrinks)


def _files(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.glob(pattern), key=lambda file: file.stem)


def main(arguments: list[str] | None = None) -> None:
    """Run experiments, save their results, and draw the figures and tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "experiments", nargs="*", metavar="mlp|resnet|gpt|residual|llama", help="Experiments to run. Default: all."
    )
    parser.add_argument("--quick", action="store_true", help="Take only a few steps, to test that everything runs.")
    parser.add_argument(
        "--part",
        choices=_PARTS,
        help="Measure only the optima by the base's width or by the factor, the gain from growth, the best shrink "
        "factor of `warmstart`, the immediate cost of noise, ways of growing at equal compute, or the options of a "
        "doubling. Default: all.",
    )
    parser.add_argument(
        "--budget",
        type=int,
        default=_BUDGET,
        help="Steps of the doubled model in the part `ways`, in units of a task's own.",
    )
    parser.add_argument(
        "--base-steps", type=int, help="Training steps of the bases in the part `bases`. Default: a task's own."
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="Go on from results that a stopped run left, in the parts `bases`, `ways` and `options`.",
    )
    parser.add_argument(
        "--only", default="", metavar="REGEX", help="Rows to measure in the parts `ways` and `options`. Default: all."
    )
    parser.add_argument(
        "--documents",
        type=Path,
        metavar="CHECKOUT",
        help="Read the documents from another checkout of this repository.",
    )
    parser.add_argument("--figures", action="store_true", help="Only draw figures and tables from earlier results.")
    parser.add_argument(
        "--output", type=Path, default=_HERE, help="Folder for results, figures and tables. Default: this folder."
    )
    options = parser.parse_args(arguments)
    unknown = set(options.experiments) - set(_GROUPS) - set(TASKS)
    if unknown:
        parser.error(f"unknown experiment {', '.join(sorted(unknown))}; known: {', '.join({**_GROUPS, **TASKS})}")
    output = options.output
    if options.quick and output == _HERE:
        output = Path(tempfile.mkdtemp(prefix="experiments-"))
    others = [*_GROUPS["mlp"], "resnet", "gpt"]  # the rest are for one part each
    measured = {**dict.fromkeys(_PARTS, others), "warmstart": _SHRUNK, "ways": _GROWN, "options": _COPIED}
    names = [name for group in options.experiments or _GROUPS for name in _GROUPS.get(group, (group,))]
    for name in () if options.figures else names:
        for part in (options.part,) if options.part else _PARTS:
            if name in measured[part]:
                task = task_of(part, name, options)
                file = output / "results" / f"{part}-{task.name}.json"
                resumes = options.resume and file.exists()
                earlier = load(file) if resumes else None
                keep = partial(save, file=file, earlier=made_with(file) if resumes else None)
                keep(measure(part, task, earlier, keep, options.only, quick=options.quick))
    found = tuple(
        [load(file) for name in TASKS for file in _files(output / "results", f"{part}-{name}*.json")] for part in _PARTS
    )
    bases, optima, growth, warmstart, _, ways, choices = found
    figures.draw_all(bases, optima, growth, warmstart, ways, choices, output / "figures")
    document = output / "README.md"
    if document.exists():
        document.write_text(fill(document.read_text(), tables(*found)))
    sys.stdout.write(f"results and figures are in {output}\n")


if __name__ == "__main__":
    main()

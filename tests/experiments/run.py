"""Run the experiments: `python tests/experiments/run.py [mlp] [resnet] [gpt] [--quick] [--figures]`."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

_HERE = Path(__file__).parent
sys.path.insert(0, str(_HERE.parent))

from experiments import figures  # noqa: E402 (the path must be known before)
from experiments.cost import measure_cost  # noqa: E402
from experiments.identity import measure_identity  # noqa: E402
from experiments.results import Growth, Optima, Results, Warmstart, fill, load, save, tables  # noqa: E402
from experiments.speed import measure_speed, tune  # noqa: E402
from experiments.tasks import TASKS, Task  # noqa: E402
from experiments.transfer import measure_transfer, narrow_checkpoint, nearest_power  # noqa: E402
from experiments.warmstart import SHRINKS, SIZES, measure_shrinking  # noqa: E402
from mupscale_cli.engine.threads import one_thread  # noqa: E402

_GROUPS = {"mlp": ("mlp-sgd", "mlp-adamw"), "resnet": ("resnet",), "gpt": ("gpt",)}
_SHRUNK = ("mlp-sgd", "mlp-adamw", "gpt")
_PARTS = ("optima", "growth", "warmstart", "cost")
_IDENTITY_STEPS = 40


def measure_optima(task: Task, folder: Path, say: Callable[[str], None]) -> Optima:
    """Whether training without noise is identical, and where optima lie; in `folder` are checkpoints."""
    began = time.monotonic()
    identity = tuple(
        measure_identity(task, folder / f"identity-{factor}", factor, min(_IDENTITY_STEPS, task.steps))
        for factor in (3, 4)
    )
    for found in identity:
        say(f"x{found.factor} without noise: losses differ by {found.difference:.0e}")
    narrow, grid = narrow_checkpoint(task, folder)
    say(f"narrow: {grid.told}")
    transfers = tuple(measure_transfer(narrow, arm, say) for arm in ("mapped", "standard"))
    return Optima(task.name, task.title, _sizes(task), time.monotonic() - began, identity, grid, transfers)


def measure_growth(task: Task, folder: Path, say: Callable[[str], None]) -> Growth:
    """What a widened model gains over the narrow one and over one from scratch; in `folder` are checkpoints."""
    began = time.monotonic()
    narrow, grid = narrow_checkpoint(task, folder)
    say(f"narrow: {grid.told}")
    noises, rates = tuned = tune(narrow, task.factors[0])
    say(f"x{task.factors[0]} noise {noises.told}, lr {rates.told}")
    speeds, scratch, start = [], {}, rates.best
    for factor in task.factors:
        speed, scratch[factor] = measure_speed(narrow, factor, rates.best, noises.best, start)
        start = scratch[factor].best
        speeds.append(speed)
        say(f"x{factor} scratch: {scratch[factor].told}; {speed.told}")
    return Growth(task.name, task.title, _sizes(task), time.monotonic() - began, grid, tuned, tuple(speeds), scratch)


def measure_warmstart(task: Task, folder: Path, say: Callable[[str], None], shrinks: tuple[float, ...]) -> Warmstart:
    """How much narrow weights are best shrunk before they are padded; in `folder` are checkpoints."""
    began = time.monotonic()
    narrow, grid = narrow_checkpoint(task, folder)
    shrinkings = tuple(
        measure_shrinking(narrow, factor, size, nearest_power(narrow.lr), say, shrinks)
        for factor in task.factors
        for size in SIZES
    )
    return Warmstart(task.name, task.title, _sizes(task), time.monotonic() - began, grid, shrinkings)


def _sizes(task: Task) -> dict[str, str]:
    counts = [sum(p.numel() for p in task.build(factor).parameters()) for factor in (1, *task.factors)]
    return {
        "widths": ", ".join(f"x{factor}" for factor in task.factors),
        "parameters, narrow and wide": " … ".join(_short(count) for count in counts),
        "examples a step": str(task.batch_size),
        "steps, narrow + wide": f"{task.narrow_steps} + {task.steps}",
        "seeds": str(len(task.seeds)),
    }


def _short(count: int) -> str:
    return f"{count / 1000:.3g} k" if count < 10**6 else f"{count / 10**6:.3g} M"


def main(arguments: list[str] | None = None) -> None:
    """Measure, save, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiments", nargs="*", metavar="mlp|resnet|gpt", help="all if none is named")
    parser.add_argument("--quick", action="store_true", help="a few steps, to try that everything runs")
    parser.add_argument(
        "--part",
        choices=_PARTS,
        help="optima over widths, what growth gains, how much `warmstart` shrinks, or what noise costs at once; "
        "all if not given",
    )
    parser.add_argument("--figures", action="store_true", help="draw again what was measured before")
    parser.add_argument("--output", type=Path, default=_HERE, help="folder for results, figures and tables")
    options = parser.parse_args(arguments)
    unknown = set(options.experiments) - set(_GROUPS) - set(TASKS)
    if unknown:
        parser.error(f"there is no experiment {', '.join(sorted(unknown))}; known: {', '.join({**_GROUPS, **TASKS})}")
    output = options.output
    if options.quick and output == _HERE:
        output = Path(tempfile.mkdtemp(prefix="experiments-"))
    names = [name for group in options.experiments or _GROUPS for name in _GROUPS.get(group, (group,))]
    for name in () if options.figures else names:
        for part in (options.part,) if options.part else _PARTS:
            if part == "warmstart" and name not in _SHRUNK:
                continue
            task = TASKS[name].quick() if options.quick else TASKS[name]
            task = task if part in ("optima", "cost") else task.grown()
            began = time.monotonic()

            def say(text: str, heading: str = f"{name} {part}", began: float = began) -> None:
                sys.stdout.write(f"{heading} {time.monotonic() - began:6.1f} s  {text}\n")
                sys.stdout.flush()

            with tempfile.TemporaryDirectory() as folder, one_thread():
                found: Results
                if part == "optima":
                    found = measure_optima(task, Path(folder), say)
                elif part == "growth":
                    found = measure_growth(task, Path(folder), say)
                elif part == "cost":
                    found = measure_cost(task, Path(folder), *((task.factors,) if options.quick else ()))
                else:
                    shrinks = SHRINKS[::4] if options.quick else SHRINKS
                    found = measure_warmstart(task.briefly(), Path(folder), say, shrinks)
            save(found, output / "results" / f"{part}-{name}.json")
    optima, growth, warmstart, cost = (
        [load(file) for name in TASKS if (file := output / "results" / f"{part}-{name}.json").exists()]
        for part in _PARTS
    )
    figures.draw_all(optima, growth, warmstart, output / "figures")
    document = output / "README.md"
    if document.exists():
        document.write_text(fill(document.read_text(), tables(optima, growth, warmstart, cost)))
    sys.stdout.write(f"results and figures are in {output}\n")


if __name__ == "__main__":
    main()

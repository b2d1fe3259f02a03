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
from experiments.identity import measure_identity  # noqa: E402
from experiments.results import Results, fill, load, save, tables  # noqa: E402
from experiments.speed import measure_speed  # noqa: E402
from experiments.tasks import TASKS, Task  # noqa: E402
from experiments.training import single_thread  # noqa: E402
from experiments.transfer import measure_transfer, narrow_checkpoint, nearest_power  # noqa: E402
from experiments.warmstart import SHRINKS, measure_shrinking  # noqa: E402

_GROUPS = {"mlp": ("mlp-sgd", "mlp-adamw"), "resnet": ("resnet",), "gpt": ("gpt",)}
_SHRUNK = ("mlp-sgd", "mlp-adamw", "gpt")
_SHRUNK_FACTORS = (2, 4)
_IDENTITY_STEPS = 40


def measure(task: Task, folder: Path, say: Callable[[str], None], *, quick: bool = False) -> Results:
    """All the measurements of one task, in `folder` for checkpoints."""
    began = time.monotonic()
    identity = tuple(
        measure_identity(task, folder / f"identity-{factor}", factor, 10 if quick else _IDENTITY_STEPS)
        for factor in (3, 4)
    )
    for found in identity:
        say(f"x{found.factor} without noise: losses differ by {found.difference:.0e}")
    narrow, grid = narrow_checkpoint(task, folder)
    say(f"narrow: {grid.told}")
    transfers = tuple(measure_transfer(narrow, arm, say) for arm in ("mapped", "standard"))
    mapped = transfers[0]
    lr, noise = (grids[task.factors[0]].best for grids in (mapped.lr, mapped.noises))
    speeds, scratch, start = [], {}, lr
    for factor in dict.fromkeys((2, *task.factors[:-1])):
        speed, scratch[factor] = measure_speed(narrow, factor, lr, noise, start)
        start = scratch[factor].best
        speeds.append(speed)
        say(f"x{factor} scratch: {scratch[factor].told}; ratio {speed.ratio}")
    shrinkings = tuple(
        measure_shrinking(narrow, factor, scratch[factor].best, say, SHRINKS[::2] if quick else SHRINKS)
        for factor in _SHRUNK_FACTORS
        if task.name in _SHRUNK and factor in scratch
    )
    counts = [sum(p.numel() for p in task.build(factor).parameters()) for factor in (1, *task.factors)]
    sizes = {
        "parameters": " → ".join(_short(count) for count in (counts[0], counts[1], counts[-1])),
        "examples a step": str(task.batch_size),
        "steps": f"{task.narrow_steps} + {task.steps}",
        "seeds": str(len(task.seeds)),
    }
    return Results(task.name, task.title, sizes, time.monotonic() - began, identity, grid, nearest_power(narrow.lr),
                   transfers, tuple(speeds), scratch, shrinkings)  # fmt: skip


def _short(count: int) -> str:
    return f"{count / 1000:.3g} k" if count < 10**6 else f"{count / 10**6:.3g} M"


def main(arguments: list[str] | None = None) -> None:
    """Measure, save, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiments", nargs="*", metavar="mlp|resnet|gpt", help="all if none is named")
    parser.add_argument("--quick", action="store_true", help="a few steps, to try that everything runs")
    parser.add_argument("--figures", action="store_true", help="draw again what was measured before")
    parser.add_argument("--output", type=Path, default=_HERE, help="folder for results, figures and tables")
    options = parser.parse_args(arguments)
    unknown = set(options.experiments) - set(_GROUPS)
    if unknown:
        parser.error(f"there is no experiment {', '.join(sorted(unknown))}; known: {', '.join(_GROUPS)}")
    output = options.output
    if options.quick and output == _HERE:
        output = Path(tempfile.mkdtemp(prefix="experiments-"))
    for group in () if options.figures else options.experiments or _GROUPS:
        for name in _GROUPS[group]:
            task = TASKS[name].quick() if options.quick else TASKS[name]
            began = time.monotonic()

            def say(text: str, name: str = name, began: float = began) -> None:
                sys.stdout.write(f"{name} {time.monotonic() - began:6.1f} s  {text}\n")
                sys.stdout.flush()

            with tempfile.TemporaryDirectory() as folder, single_thread():
                save(measure(task, Path(folder), say, quick=options.quick), output / "results" / f"{name}.json")
    files = [output / "results" / f"{name}.json" for group in _GROUPS.values() for name in group]
    found = [load(file) for file in files if file.exists()]
    figures.draw_all(found, output / "figures")
    document = output / "README.md"
    if document.exists():
        document.write_text(fill(document.read_text(), tables(found)))
    sys.stdout.write(f"results and figures are in {output}\n")


if __name__ == "__main__":
    main()

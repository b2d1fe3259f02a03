"""Results of experiments as values, as JSON and as tables."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch

import mupscale_cli
from experiments.bases import BASES, Bases
from experiments.cost import Cost
from experiments.identity import Identity
from experiments.shapes import Ways
from experiments.speed import Speed
from experiments.transfer import Grid, Transfer, power, shift
from experiments.warmstart import Shrinking


@dataclass(frozen=True)
class Optima:
    """The best learning rates and noises of a task at every width.

    Attributes:
        task: the task's name.
        title: the title of its figures.
        sizes: the sizes of the models and their training, as texts by label.
        seconds: the duration of the measurement.
        identity: training without noise, one entry per factor.
        narrow: the search for the narrow model's learning rate.
        transfers: optima by width, with mapped hyperparameters and in standard parametrization.
    """

    task: str
    title: str
    sizes: dict[str, str]
    seconds: float
    identity: tuple[Identity, ...]
    narrow: Grid
    transfers: tuple[Transfer, ...]


@dataclass(frozen=True)
class Growth:
    """Training curves of narrow, widened and new models of a task.

    Attributes:
        task: the task's name.
        title: the title of its figures.
        sizes: the sizes of the models and their training, as texts by label.
        seconds: the duration of the measurement.
        narrow: the search for the narrow model's learning rate.
        tuned: the searches for noise and learning rate, both at the smallest factor.
        speeds: curves, one entry per factor.
        scratch: the searches for the learning rate from scratch, by factor.
    """

    task: str
    title: str
    sizes: dict[str, str]
    seconds: float
    narrow: Grid
    tuned: tuple[Grid, ...]
    speeds: tuple[Speed, ...]
    scratch: dict[int, Grid]


@dataclass(frozen=True)
class Warmstart:
    """Losses of models that are shrunk and padded, for a task.

    Attributes:
        task: the task's name.
        title: the title of its figures.
        sizes: the sizes of the models and their training, as texts by label.
        seconds: the duration of the measurement.
        narrow: the search for the narrow model's learning rate.
        shrinkings: one entry per factor and size of the fresh weights.
    """

    task: str
    title: str
    sizes: dict[str, str]
    seconds: float
    narrow: Grid
    shrinkings: tuple[Shrinking, ...]


Results = Union[Bases, Optima, Growth, Warmstart, Cost, Ways]


def save(results: Results, file: Path, earlier: Mapping[str, Any] | None = None) -> None:
    """Write results as JSON, with what they were made with. An infinite loss (diverged) becomes null.

    Args:
        results: the results.
        file: the file to write.
        earlier: what the run was made with that these results go on from; see `made_with`.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    made = {**_versions(), **({"resumed_from": earlier} if earlier else {})}
    content = {"kind": type(results).__name__, "made_with": made, **_plain(dataclasses.asdict(results))}
    staged = file.with_suffix(".part")  # so that a run that is stopped leaves a complete file
    staged.write_text(json.dumps(content) + "\n")
    staged.replace(file)


@cache
def _versions() -> dict[str, str]:
    """Return the versions and the commit of the code that runs."""
    git = ("git", "-C", str(Path(__file__).parent))
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], check=False).returncode
    return {
        "commit": commit + (", with changes" if changed else ""),
        "mupscale": mupscale_cli.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def made_with(file: Path) -> dict[str, Any]:
    """Return the commit and the versions that results were made with."""
    return dict(json.loads(file.read_text()).get("made_with", {}))


def load(file: Path) -> Results:
    """Read results that `save` wrote."""
    content = json.loads(file.read_text())
    content.pop("made_with", None)  # older results do not say it
    kinds = {kind.__name__: kind for kind in get_args(Results)}
    return _typed(kinds[content.pop("kind")], content)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        # Six digits are more than the seeds agree on. Differences of losses were computed before rounding.
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def _typed(kind: Any, value: Any) -> Any:
    """Convert a JSON value to the declared type of a field."""
    origin, arguments = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        known = [field.name for field in dataclasses.fields(kind) if field.name in value]  # older results lack some
        return kind(**{name: _typed(hints[name], value[name]) for name in known})
    if origin is dict:
        return {arguments[0](key): _typed(arguments[1], entry) for key, entry in value.items()}
    if origin is tuple:
        return tuple(_typed(arguments[0], entry) for entry in value)
    return math.inf if kind is float and value is None else value


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def optima_table(all_results: Sequence[Optima]) -> str:
    """Tabulate the optima as exponents e of 2^(e/2), and how far they move."""
    rows = []
    for results in all_results:
        for transfer in results.transfers:
            for what, grids in (("learning rate", transfer.lr), ("noise", transfer.noises)):
                best = [_optimum(grid) for grid in grids.values()]
                fitted = [grid.fitted for grid in grids.values()]
                rows.append(
                    [results.title, transfer.arm, what, *best, str(shift(grids)), f"{max(fitted) - min(fitted):.1f}"]
                )
    widths = ["narrowest", "x2", "x4", "x8"]  # relative to the narrowest
    return _table(["", "hyperparameters", "optimum of", *widths, "moves by", "parabola"], rows)


def bases_table(all_results: Sequence[Bases]) -> str:
    """Tabulate the optima by the width of the base as exponents e of 2^(e/2), and how far they move."""
    rows = []
    for results in all_results:
        for transfer in results.transfers:
            for what, grids in (("learning rate", transfer.rates), ("noise", transfer.noises)):
                best = [_optimum(grids[base]) if base in grids else "not run" for base in BASES]
                fitted = [grid.fitted for grid in grids.values()]
                moved = ["", "", ""]
                if len(grids) > 1:
                    moved = [str(shift(grids)), f"{max(fitted) - min(fitted):.1f}", _price(grids)]
                rows.append([results.title, transfer.scale, what, *best, *moved])
    widths = [f"base x{base}" for base in BASES]
    return _table(["", "noise scale", "optimum of", *widths, "moves by", "parabola", "costs"], rows)


def _price(grids: Mapping[int, Grid]) -> str:
    """Return by how much the narrowest base's optimum raises the loss of the widest one."""
    narrowest, widest = grids[min(grids)], grids[max(grids)]
    if narrowest.best not in widest.seen:
        return "not run"
    best, taken = (fmean(widest.seen[exponent]) for exponent in (widest.best, narrowest.best))
    return f"{taken / best - 1:.0%}"


def _optimum(grid: Grid) -> str:
    return f"{grid.best} ({min(grid.best_of_seeds)} … {max(grid.best_of_seeds)})"


def identity_table(all_results: Sequence[Optima]) -> str:
    """Tabulate how closely models widened without noise train like narrow ones."""
    rows = [
        [results.title, f"x{identity.factor}", str(len(identity.wide)), f"{identity.difference:.0e}"]
        for results in all_results
        for identity in results.identity
    ]
    return _table(["", "width", "steps", "largest relative difference of losses"], rows)


def speed_table(all_results: Sequence[Growth]) -> str:
    """Tabulate how soon widened models reach the losses of the others."""
    rows = [
        [
            results.title,
            f"x{speed.factor}",
            _losses(speed.narrow, lambda c: c.last),
            _losses(speed.widened, lambda c: c.last),
            _losses(speed.scratch, lambda c: c.last),
            _steps(speed.until_narrow),
            _steps(speed.scratch_until_narrow),
            _steps(speed.until_scratch),
            speed.ratio_text,
            *(
                _losses(curves, lambda c: c.held_out[max(c.held_out)])
                for curves in (speed.narrow, speed.widened, speed.scratch)
            ),
        ]
        for results in all_results
        for speed in results.speeds
    ]
    return _table(
        [
            "",
            "width",
            "loss: narrow continues",
            "widened",
            "scratch",
            "steps to narrow's loss: widened",
            "scratch",
            "steps to scratch's last loss",
            "ratio",
            "held out: narrow",
            "widened",
            "scratch",
        ],
        rows,
    )


def shrink_table(all_results: Sequence[Warmstart], growth: Sequence[Growth]) -> str:
    """Tabulate the losses of padded models by the shrink factor of the narrow weights."""
    shrinks = list(all_results[0].shrinkings[0].grids)
    rows = []
    for results in all_results:
        for shrinking in results.shrinkings:
            speeds = [s for g in growth if g.task == results.task for s in g.speeds if s.factor == shrinking.factor]
            rows.append(
                [
                    results.title,
                    f"x{shrinking.factor}",
                    f"{shrinking.size:g}",
                    *(_spread(grid.seen[grid.best]) for grid in shrinking.grids.values()),
                    *(
                        f"{fmean(curve.last for curve in curves):.3f}"
                        for speed in speeds
                        for curves in (speed.widened, speed.scratch)
                    ),
                ]
            )
    return _table(
        ["", "width", "fresh weights", *(f"λ = {shrink:g}" for shrink in shrinks), "copies and noise", "scratch"], rows
    )


def cost_table(all_results: Sequence[Cost]) -> str:
    """Tabulate how much noise raises the loss before the first step."""
    factors = next(iter(all_results[0].losses.values()))
    rows = [
        [
            results.title,
            f"{power(exponent):.3g}",
            *(f"{fmean(losses) - results.narrow:.3f}" for losses in by_factor.values()),
        ]
        for results in all_results
        for exponent, by_factor in results.losses.items()
    ]
    return _table(["", "noise", *(f"x{factor}" for factor in factors)], rows)


def ways_table(all_results: Sequence[Ways]) -> str:
    """Tabulate the final losses of ways of growing that spend the same compute.

    The last column has the operations of the base and of the search for learning rate and noise, over those of one
    training after growing.
    """
    has_tuning = any(grown.tuning for results in all_results for grown in results.grown)
    rows = [
        [
            results.title,
            grown.way,
            _short(grown.parameters),
            str(grown.steps),
            str(grown.lr),
            "none" if grown.noise is None else str(grown.noise),
            _losses(grown.curves, lambda c: c.last),
            _losses(grown.curves, lambda c: c.held_out[max(c.held_out)]),
            *([f"{grown.before / total:.2f} + {grown.tuning / total:.1f}"] if has_tuning else []),
        ]
        for results in all_results
        for grown in results.grown
        if (total := grown.flops * grown.steps)
    ]
    columns = ["", "way", "parameters", "steps", "learning rate", "noise", "loss", "held out"]
    return _table([*columns, *(["base + search"] if has_tuning else [])], rows)


def _short(count: int) -> str:
    return f"{count / 1000:.3g} k" if count < 10**6 else f"{count / 10**6:.3g} M"


def _losses(curves: Sequence[Any], loss: Callable[[Any], float]) -> str:
    return _spread([loss(curve) for curve in curves])


def _spread(values: Sequence[float]) -> str:
    return f"{fmean(values):.3f} ± {(max(values) - min(values)) / 2:.3f}"


def _steps(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "never"
    mean = f"{fmean(known):.0f}"
    return mean if len(known) == len(values) else f"{mean} ({len(known)} of {len(values)} seeds)"


def sizes_table(all_results: Sequence[Union[Optima, Growth]]) -> str:
    """Tabulate the sizes of models and training, and how long the measurement took."""
    return _table(
        ["", *all_results[0].sizes, "learning rate of the narrow model", "minutes"],
        [[r.title, *r.sizes.values(), f"{power(r.narrow.best):.3g}", f"{r.seconds / 60:.1f}"] for r in all_results],
    )


def bases_sizes_table(all_results: Sequence[Bases]) -> str:
    """Tabulate the sizes of models and training along the axis of the base's width."""
    return _table(
        ["", *all_results[0].sizes, "minutes"],
        [[r.title, *r.sizes.values(), f"{r.seconds / 60:.1f}"] for r in all_results],
    )


def tables(
    bases: Sequence[Bases],
    optima: Sequence[Optima],
    growth: Sequence[Growth],
    warmstart: Sequence[Warmstart],
    cost: Sequence[Cost],
    ways: Sequence[Ways],
    options: Sequence[Ways],
) -> dict[str, str]:
    """Return every table by its name in README.md."""
    named = {}
    if bases:
        named |= {"bases": bases_table(bases), "bases-sizes": bases_sizes_table(bases)}
    if optima:
        named |= {
            "identity": identity_table(optima),
            "optima": optima_table(optima),
            "optima-sizes": sizes_table(optima),
        }
    if growth:
        named |= {"speed": speed_table(growth), "speed-sizes": sizes_table(growth)}
    if warmstart:
        named |= {"shrink": shrink_table(warmstart, growth)}
    if cost:
        named |= {"cost": cost_table(cost)}
    if ways:
        named |= {"ways": ways_table(ways)}
    if options:
        named |= {"options": ways_table(options)}
    return named


def fill(text: str, named_tables: Mapping[str, str]) -> str:
    """Replace the tables of a document, each between `<!-- name -->` and `<!-- end -->`."""
    for name, table in named_tables.items():
        begin = f"<!-- {name} -->\n"
        before, mark, after = text.partition(begin)
        if mark:
            text = f"{before}{begin}{table}\n<!-- end -->{after.partition('<!-- end -->')[2]}"
    return text

"""What an experiment found, as a value, as JSON and as tables."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Union, get_args, get_origin, get_type_hints

from experiments.cost import Cost
from experiments.identity import Identity
from experiments.speed import Speed
from experiments.transfer import Grid, Transfer, power, shift
from experiments.warmstart import Shrinking


@dataclass(frozen=True)
class Optima:
    """Where the optima of a task lie, at every width.

    Attributes:
        task: its name.
        title: of its figures.
        sizes: of the models and their training, in words.
        seconds: that the measurement took.
        identity: without noise, by factor.
        narrow: the search for the narrow model's learning rate.
        transfers: optima over widths, with mapped hyperparameters and in standard parametrisation.
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
    """What widening gains in a task.

    Attributes:
        task: its name.
        title: of its figures.
        sizes: of the models and their training, in words.
        seconds: that the measurement took.
        narrow: the search for the narrow model's learning rate.
        tuned: the searches for learning rate and noise, both at the least factor.
        speeds: curves by factor.
        scratch: searches for the learning rate from scratch, by factor.
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
    """What shrinking and padding come to in a task.

    Attributes:
        task: its name.
        title: of its figures.
        sizes: of the models and their training, in words.
        seconds: that the measurement took.
        narrow: the search for the narrow model's learning rate.
        shrinkings: by factor and size of the fresh weights.
    """

    task: str
    title: str
    sizes: dict[str, str]
    seconds: float
    narrow: Grid
    shrinkings: tuple[Shrinking, ...]


Results = Union[Optima, Growth, Warmstart, Cost]


def save(results: Results, file: Path) -> None:
    """Write results as JSON; what is infinite (diverged) is null."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"kind": type(results).__name__, **_plain(dataclasses.asdict(results))}) + "\n")


def load(file: Path) -> Results:
    """Read what `save` wrote."""
    content = json.loads(file.read_text())
    kinds = {kind.__name__: kind for kind in (Optima, Growth, Warmstart, Cost)}
    return _typed(kinds[content.pop("kind")], content)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        # Six figures: more than the seeds agree on. Differences of losses are computed before.
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def _typed(kind: Any, value: Any) -> Any:
    """A value of JSON as the type that a field declares."""
    origin, arguments = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{field.name: _typed(hints[field.name], value[field.name]) for field in dataclasses.fields(kind)})
    if origin is dict:
        return {arguments[0](key): _typed(arguments[1], entry) for key, entry in value.items()}
    if origin is tuple:
        return tuple(_typed(arguments[0], entry) for entry in value)
    return math.inf if kind is float and value is None else value


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def optima_table(all_results: Sequence[Optima]) -> str:
    """Where optima lie, as exponents e of 2^(e/2), and how far they move."""
    rows = []
    for results in all_results:
        for transfer in results.transfers:
            for what, grids in (("learning rate", transfer.lr), ("noise", transfer.noises)):
                best = [
                    f"{grid.best} ({min(grid.best_of_seeds)} … {max(grid.best_of_seeds)})" for grid in grids.values()
                ]
                fitted = [grid.fitted for grid in grids.values()]
                rows.append(
                    [results.title, transfer.arm, what, *best, str(shift(grids)), f"{max(fitted) - min(fitted):.1f}"]
                )
    places = ["narrowest", "x2", "x4", "x8"]  # relative to one another
    return _table(["", "hyperparameters", "optimum of", *places, "moves by", "parabola"], rows)


def identity_table(all_results: Sequence[Optima]) -> str:
    """How exactly widened models train as narrow ones without noise."""
    rows = [
        [results.title, f"x{found.factor}", str(len(found.wide)), f"{found.difference:.0e}"]
        for results in all_results
        for found in results.identity
    ]
    return _table(["", "width", "steps", "largest relative difference of losses"], rows)


def speed_table(all_results: Sequence[Growth]) -> str:
    """How soon widened models are where the others are."""
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
            speed.ratio_told,
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
    """The losses of padded models by what narrow weights were multiplied with."""
    shrinks = list(all_results[0].shrinkings[0].grids)
    rows = []
    for results in all_results:
        for found in results.shrinkings:
            speeds = [s for g in growth if g.task == results.task for s in g.speeds if s.factor == found.factor]
            rows.append(
                [
                    results.title,
                    f"x{found.factor}",
                    f"{found.size:g}",
                    *(_spread(grid.seen[grid.best]) for grid in found.grids.values()),
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
    """By how much noise raises the loss before the first step."""
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


def _losses(curves: Sequence[Any], of: Callable[[Any], float]) -> str:
    return _spread([of(curve) for curve in curves])


def _spread(values: Sequence[float]) -> str:
    return f"{fmean(values):.3f} ± {(max(values) - min(values)) / 2:.3f}"


def _steps(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "never"
    told = f"{fmean(known):.0f}"
    return told if len(known) == len(values) else f"{told} ({len(known)} of {len(values)} seeds)"


def sizes_table(all_results: Sequence[Union[Optima, Growth]]) -> str:
    """What was trained, and how long measuring took."""
    return _table(
        ["", *all_results[0].sizes, "learning rate of the narrow model", "minutes"],
        [[r.title, *r.sizes.values(), f"{power(r.narrow.best):.3g}", f"{r.seconds / 60:.1f}"] for r in all_results],
    )


def tables(
    optima: Sequence[Optima], growth: Sequence[Growth], warmstart: Sequence[Warmstart], cost: Sequence[Cost]
) -> dict[str, str]:
    """Every table by its name in README.md."""
    made = {}
    if optima:
        made |= {
            "identity": identity_table(optima),
            "optima": optima_table(optima),
            "optima-sizes": sizes_table(optima),
        }
    if growth:
        made |= {"speed": speed_table(growth), "speed-sizes": sizes_table(growth)}
    if warmstart:
        made |= {"shrink": shrink_table(warmstart, growth)}
    if cost:
        made |= {"cost": cost_table(cost)}
    return made


def fill(text: str, found: Mapping[str, str]) -> str:
    """A document with its tables replaced, which stand between `<!-- name -->` and `<!-- end -->`."""
    for name, table in found.items():
        begin = f"<!-- {name} -->\n"
        before, mark, after = text.partition(begin)
        if mark:
            text = f"{before}{begin}{table}\n<!-- end -->{after.partition('<!-- end -->')[2]}"
    return text

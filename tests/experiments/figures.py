"""Draw the results as SVG figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib as mpl
import matplotlib.ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.bases import Bases
from experiments.results import Growth, Optima, Warmstart
from experiments.shapes import Ways
from experiments.speed import Speed
from experiments.training import Curve
from experiments.transfer import Grid, power, shift

_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.hashsalt": "mupscale",  # equal figures become equal files
    "svg.fonttype": "none",  # keeps text small and searchable
}
_ARMS = {"mapped": "widened, mapped hyperparameters", "standard": "widened, standard parametrization"}
_NARROW, _WIDENED, _SCRATCH = "#888888", "#d1495b", "#30638e"
_HIGHEST = 2.2  # times the largest of the best losses; higher points are far from any optimum


def draw_all(
    bases: Sequence[Bases],
    optima: Sequence[Optima],
    growth: Sequence[Growth],
    warmstart: Sequence[Warmstart],
    ways: Sequence[Ways],
    options: Sequence[Ways],
    folder: Path,
) -> list[Path]:
    """Draw every figure and return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(_STYLE):
        files = [_save(draw_bases(results), folder / f"bases-{results.task}.svg") for results in bases]
        files += [_save(draw_transfer(results), folder / f"optima-{results.task}.svg") for results in optima]
        if optima:
            files.append(_save(draw_identity(optima), folder / "identity.svg"))
        if growth:
            files.append(_save(draw_speed(growth), folder / "growth.svg"))
        if warmstart:
            files.append(_save(draw_shrinking(warmstart, growth), folder / "warmstart.svg"))
        if ways:
            files.append(_save(draw_ways(ways), folder / "ways.svg"))
        if options:
            files.append(_save(draw_ways(options), folder / "options.svg"))
    return files


def _save(figure: Figure, file: Path) -> Path:
    figure.savefig(file, metadata={"Date": None})
    return file


def _panels(rows: int, columns: int, size: tuple[float, float] = (3.6, 2.7), **options: Any) -> tuple[Figure, Any]:
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def _band(axes: Axes, points: Mapping[float, Sequence[float]], color: Any, **line: Any) -> None:
    """Draw means as a line over a band with the range of the seeds."""
    finite = {x: values for x, values in points.items() if all(map(math.isfinite, values))}
    axes.fill_between(
        list(finite),
        [min(v) for v in finite.values()],
        [max(v) for v in finite.values()],
        color=color,
        alpha=0.18,
        linewidth=0,
    )
    axes.plot(list(finite), [fmean(v) for v in finite.values()], color=color, **line)


def _colors(count: int) -> list[Any]:
    return [mpl.colormaps["viridis"](0.85 * i / max(count - 1, 1)) for i in range(count)]


def draw_transfer(results: Optima) -> Figure:
    """Draw the final loss over learning rates and over noise, one curve per factor."""
    arms = [(_ARMS[transfer.arm], transfer.lr, transfer.noises) for transfer in results.transfers]
    return _draw_optima(results.title, arms, "width", "of the narrow model")


def draw_bases(results: Bases) -> Figure:
    """Draw the final loss over learning rates and over noise, one curve per width of the base."""
    arms = [(f"noise scale {transfer.scale}", transfer.rates, transfer.noises) for transfer in results.transfers]
    return _draw_optima(results.title, arms, "base", "of the narrowest base")


def _draw_optima(
    title: str, arms: Sequence[tuple[str, Mapping[int, Grid], Mapping[int, Grid]]], legend: str, whose: str
) -> Figure:
    figure, panels = _panels(len(arms), 2)
    for row, (arm, rates, noises) in zip(panels, arms, strict=True):
        for axes, grids, what in ((row[0], rates, "learning rate"), (row[1], noises, "noise")):
            _draw_grids(axes, grids)
            axes.set_xlabel(f"{what} ({whose})" if what == "learning rate" else f"{what}, relative size")
            axes.set_title(f"{arm}\nbest {what} moves by {_steps(shift(grids))} of √2", fontsize=9)
        row[0].set_ylabel("training loss at the end (nats)")
        row[1].legend(title=legend, fontsize=8)
    for column in (0, 1):
        lows, highs = zip(*(row[column].get_xlim() for row in panels), strict=True)
        for row in panels:
            row[column].set_xlim(min(lows), max(highs))
    figure.suptitle(title)
    return figure


def _steps(count: int) -> str:
    return f"{count} step" if count == 1 else f"{count} steps"


def _draw_grids(axes: Axes, grids: Mapping[int, Grid]) -> None:
    best = {factor: fmean(grid.seen[grid.best]) for factor, grid in grids.items()}
    for (factor, grid), color in zip(grids.items(), _colors(len(grids)), strict=True):
        _band(axes, {power(e): v for e, v in grid.seen.items()}, color, marker=".", label=f"x{factor}", linewidth=1.2)
        axes.plot(power(grid.best), best[factor], marker="*", markersize=12, color=color, markeredgecolor="white")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_ylim(min(best.values()) * 0.93, _highest(grids, best))
    _plain_ticks(axes)


def _highest(grids: Mapping[int, Grid], best: Mapping[int, float]) -> float:
    means = [fmean(values) for grid in grids.values() for values in grid.seen.values()]
    return min(max(mean for mean in means if math.isfinite(mean)) * 1.05, max(best.values()) * _HIGHEST)


def _plain_ticks(axes: Axes) -> None:
    """Label losses with decimal numbers, even on a logarithmic axis of less than a decade."""
    axes.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
    axes.yaxis.set_minor_locator(mpl.ticker.NullLocator())
    low, high = axes.get_ylim()
    if high / low < 1.6:
        axes.yaxis.set_major_locator(mpl.ticker.MaxNLocator(5))


def draw_speed(all_results: Sequence[Growth]) -> Figure:
    """Draw the training loss over steps for the narrow, the widened and a new random model, one row per width."""
    figure, panels = _panels(max(len(results.speeds) for results in all_results), len(all_results), (3.1, 2.6))
    for column, results in zip(panels.T, all_results, strict=True):
        lowest = _lowest(results.speeds)
        for axes, speed in zip(column, results.speeds, strict=True):
            for curves, color, label in (
                (speed.scratch, _SCRATCH, "from scratch, best rate"),
                (speed.narrow, _NARROW, "narrow, continued"),
                (speed.widened, _WIDENED, "widened, with noise"),
            ):
                _band(axes, _by_step(curves), color, label=label)
            axes.axhline(speed.narrow_loss, color=_NARROW, linestyle=":", linewidth=1)
            axes.set_yscale("log")
            axes.set_ylim(lowest * 0.93, speed.narrow_loss * min(3, (speed.narrow_loss / lowest)))
            _plain_ticks(axes)
            axes.set_title(f"{results.title}, x{speed.factor}\n{_ratio_title(speed)}", fontsize=9)
            axes.set_xlabel("steps after widening")
    for row in panels:
        row[0].set_ylabel("training loss (nats)")
    panels[0][0].legend(fontsize=8)
    return figure


def _ratio_title(speed: Speed) -> str:
    titles = {"never": "the model from scratch ends lower", "at once": "starts below the end from scratch"}
    return titles.get(speed.ratio_text, f"scratch's loss in {speed.ratio_text} times fewer steps")


def _by_step(curves: Iterable[Curve]) -> dict[float, list[float]]:
    curves = list(curves)
    return {
        step: [curve.seen[step] for curve in curves]
        for step in curves[0].seen
        if all(step in curve.seen for curve in curves)
    }


def _lowest(speeds: Iterable[Speed]) -> float:
    return min(
        curve.last for speed in speeds for curves in (speed.narrow, speed.widened, speed.scratch) for curve in curves
    )


def draw_shrinking(all_results: Sequence[Warmstart], growth: Sequence[Growth]) -> Figure:
    """Draw the final loss of padded models over the shrink factor of the narrow weights."""
    figure, panels = _panels(1, len(all_results), (3.3, 3.0))
    for axes, results in zip(panels[0], all_results, strict=True):
        factors = sorted({shrinking.factor for shrinking in results.shrinkings})
        colors = dict(zip(factors, _colors(len(factors) + 1), strict=False))
        for shrinking in results.shrinkings:
            points = {shrink: grid.seen[grid.best] for shrink, grid in shrinking.grids.items()}
            _band(
                axes,
                points,
                colors[shrinking.factor],
                marker="o" if shrinking.size == 1 else "^",
                markersize=4,
                label=f"x{shrinking.factor}, padded, fresh weights {shrinking.size:g}",
            )
        for speed in (speed for grown in growth if grown.task == results.task for speed in grown.speeds):
            for curves, line, label in ((speed.widened, "--", "copies, noise"), (speed.scratch, ":", "scratch")):
                axes.axhline(
                    fmean(curve.last for curve in curves),
                    color=colors.get(speed.factor, "black"),
                    linestyle=line,
                    linewidth=1,
                    label=f"x{speed.factor}, {label}",
                )
        axes.set_title(results.title, fontsize=9)
        axes.set_xlabel("shrink factor λ of the narrow weights")
    panels[0][0].set_ylabel("training loss at the end (nats)")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7)
    return figure


def draw_identity(all_results: Sequence[Optima]) -> Figure:
    """Draw the losses of every step for the narrow model and for models widened without noise."""
    figure, panels = _panels(1, len(all_results), (2.8, 2.7))
    for axes, results in zip(panels[0], all_results, strict=True):
        identity = results.identity[-1]
        steps = range(1, len(identity.wide) + 1)
        axes.plot(
            range(1, len(identity.standard) + 1),
            identity.standard,
            color=_SCRATCH,
            linewidth=1,
            label="widened, one learning rate",
        )
        axes.plot(steps, identity.wide, color=_WIDENED, label="widened, mapped")
        axes.plot(steps, identity.narrow, ".", color="black", markersize=4, label="narrow")
        axes.set_ylim(min(identity.wide) * 0.9, max(identity.wide) * 1.3)
        axes.set_title(f"{results.title}\nx{identity.factor}, float64: differ by {identity.difference:.0e}", fontsize=9)
        axes.set_xlabel("step")
    panels[0][0].set_ylabel("loss of the batch (nats)")
    panels[0][0].legend(fontsize=7)
    return figure


def draw_ways(all_results: Sequence[Ways]) -> Figure:
    """Draw the training loss of every way of growing over all compute: with the narrow model's, and with the search's.

    The second row is left out if the search for learning rate and noise was not counted.
    """
    has_search = any(grown.tuning for results in all_results for grown in results.grown)
    figure, panels = _panels(1 + has_search, len(all_results), (4.4, 3.2))
    for row, included in zip(panels, ("narrow training", "narrow training and search"), strict=False):
        for axes, results in zip(row, all_results, strict=True):
            for grown, color in zip(results.grown, _colors(len(results.grown)), strict=True):
                before = grown.before + (grown.tuning if "search" in included else 0.0)
                by_flops = {before + step * grown.flops: seen for step, seen in _by_step(grown.curves).items() if step}
                _band(axes, by_flops, color, label=grown.way, linewidth=1.2)
            axes.set_yscale("log")
            _plain_ticks(axes)
            axes.set_title(results.title, fontsize=9)
            axes.set_xlabel(f"floating-point operations, {included} included")
            axes.legend(fontsize=6)
        row[0].set_ylabel("training loss (nats)")
    return figure

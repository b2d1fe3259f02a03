"""Draw a sweep: loss against learning rate, one curve per width, one panel per noise size."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any

from mupscale_cli.reports.pictures.canvas import ACCENT, GRAY, INK, color_map, dress, heading, new_figure
from mupscale_cli.sweep.result import Cell, Findings

_PANEL = (3.6, 3.7)  # inches
_MAX_COLUMNS = 4
_ENTRY = 1.6  # width of a legend's entry, in inches
_HEADROOM = 2.5  # height of the axis above the best loss, in ranges of the best three quarters of the losses


def draw_sweep(findings: Findings, title: str, loss: str) -> Any:
    """Draw the results of a sweep, complete or not.

    Args:
        findings: results of the sweep.
        title: start of the heading, such as the checkpoint's name.
        loss: label of the vertical axis.

    Returns:
        A matplotlib figure.

    Raises:
        PictureError: matplotlib is not installed.
    """
    noises = findings.grid.noises
    rows = math.ceil(len(noises) / _MAX_COLUMNS)
    columns = math.ceil(len(noises) / rows)
    size = (max(6.0, _PANEL[0] * columns + 0.9), _PANEL[1] * rows + 1.0)
    figure = new_figure(*size)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    panels = [panel for row in grid for panel in row]
    colors = _colors(len(findings.grid.factors))
    limits = _limits(findings.cells)
    for panel, noise in zip(panels, noises, strict=False):
        _draw_panel(panel, findings, noise, colors, limits)
    for panel in panels[len(noises) :]:
        panel.set_visible(False)
    for panel in panels[max(0, len(noises) - columns) : len(noises)]:  # the lowest of each column
        panel.set_xlabel("learning rate of the narrow run", color=GRAY, fontsize=9)
        panel.tick_params(labelbottom=True)
    for row in grid:
        row[0].set_ylabel(loss, color=GRAY, fontsize=9)
    handles, labels = _legend(panels[: len(noises)])
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=min(len(labels), int(size[0] / _ENTRY)),
        frameon=False,
        labelcolor=INK,
        fontsize=9,
    )
    heading(figure, _heading(findings, title))
    return figure


def _heading(findings: Findings, title: str) -> str:
    best = findings.recommendation
    text = "every trial diverged" if best is None else f"best for every width: lr {best.lr:.3g}, noise {best.noise:g}"
    return f"{title} \N{EM DASH} {text}"


def _draw_panel(
    panel: Any, findings: Findings, noise: float, colors: Sequence[Any], limits: tuple[float, float]
) -> None:
    low, high = limits
    _dress(panel, findings, noise, limits)
    for place, (factor, color) in enumerate(zip(findings.grid.factors, colors, strict=True)):
        width = 1.6 + 1.1 * (len(colors) - 1 - place)  # equal curves, as without noise, all stay visible
        cells = [c for lr in findings.grid.lrs if (c := findings.cell(factor, noise, lr)) is not None]
        finite = [(c.lr, c.loss, c.spread) for c in cells if c.loss is not None]
        lrs, losses = [lr for lr, _, _ in finite], [loss for _, loss, _ in finite]
        panel.plot(
            lrs,
            losses,
            color=color,
            marker="o",
            markersize=2.6 + width,
            linewidth=width,
            label=f"x{factor} wide",
            zorder=3,
        )
        panel.fill_between(
            lrs,
            [loss - spread for _, loss, spread in finite],
            [loss + spread for _, loss, spread in finite],
            color=color,
            alpha=0.15,
            linewidth=0,
        )
        above = [c.lr for c in cells if c.loss is None or c.loss > high]
        if above:
            panel.plot(
                above,
                [high - 0.03 * (high - low)] * len(above),
                "x",
                color=color,
                label="diverged or beyond",
                markersize=7,
                markeredgewidth=1.8,
                zorder=4,
            )
        for best in findings.optima:
            if (best.factor, best.noise) == (factor, noise):
                panel.plot(
                    [best.lr],
                    [best.loss],
                    "*",
                    color=color,
                    markersize=17,
                    markeredgecolor="white",
                    markeredgewidth=1.2,
                    label="a width's optimum",
                    zorder=5,
                )


def _dress(panel: Any, findings: Findings, noise: float, limits: tuple[float, float]) -> None:
    """Draw axes, grid and title, and a line at the recommended learning rate."""
    lrs, best = findings.grid.lrs, findings.recommendation
    is_best = best is not None and best.noise == noise
    panel.set_xscale("log")
    panel.set_xticks(lrs, [f"{lr:.3g}" for lr in lrs], rotation=45 if len(lrs) > 5 else 0, fontsize=8)
    panel.xaxis.set_minor_locator(importlib.import_module("matplotlib.ticker").NullLocator())
    panel.margins(x=0.12)
    panel.set_ylim(*limits)
    panel.set_title(f"noise {noise:g}", loc="left", fontsize=10, color=ACCENT if is_best else INK)
    dress(panel)
    if best is not None and is_best:
        panel.axvline(best.lr, color=ACCENT, linewidth=1.4, linestyle=(0, (4, 3)), label="recommended", zorder=2)


def _limits(cells: Sequence[Cell]) -> tuple[float, float]:
    """Return the limits of the loss axis; a few large losses do not flatten the curves."""
    losses = sorted(cell.loss for cell in cells if cell.loss is not None)
    if not losses:
        return 0.0, 1.0
    bulk = losses[(3 * (len(losses) - 1)) // 4] - losses[0]
    high = min(losses[-1], losses[0] + _HEADROOM * bulk) if bulk else losses[-1]
    room = 0.08 * (high - losses[0]) or 0.05
    return losses[0] - room, high + 1.5 * room


def _colors(count: int) -> list[Any]:
    """Return colors from light to dark, one per width, whose order needs no legend."""
    colormap = color_map("viridis_r")
    return [colormap(0.25 + 0.7 * (i / (count - 1) if count > 1 else 0.7)) for i in range(count)]


def _legend(panels: Sequence[Any]) -> tuple[list[Any], list[str]]:
    """Return handles and labels, each label once: widths first, then marks."""
    handles: dict[str, Any] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    labels = sorted(handles, key=lambda label: not label.startswith("x"))
    return [handles[label] for label in labels], labels

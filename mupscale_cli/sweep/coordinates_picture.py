"""Draw a coordinate check: the size and the change of activations against the width, one line per kind of layer."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any

from mupscale_cli.reports.pictures.canvas import ACCENT, GRAY, INK, color_map, dress, heading, new_figure
from mupscale_cli.sweep.coordinates import Coordinates, Kind

_PANEL = (3.0, 2.8)  # inches
_MAX_STEPS = 4  # columns


def draw_coordinates(coordinates: Coordinates, title: str) -> Any:
    """Draw the mean absolute activation of each kind of layer, and below it the change since step 0, by width.

    Both are relative to the activation before training and without noise, so all lines should be flat.

    Layers whose names differ only in numbers are drawn as one line, their mean, but a kind in which some layer changes
    with the width is red, and one in which some layer is undecided is dashed.

    Args:
        coordinates: result of the check.
        title: start of the heading, such as the checkpoint's name.

    Returns:
        A matplotlib figure.

    Raises:
        PictureError: matplotlib is not installed.
    """
    steps = _shown_steps(coordinates.steps)
    figure = new_figure(_PANEL[0] * len(steps) + 2.6, 2 * _PANEL[1] + 0.5)
    grid = figure.subplots(2, len(steps), sharex=True, sharey="row", squeeze=False)
    colors, kinds = color_map("viridis"), coordinates.kinds
    for number, kind in enumerate(kinds):
        line = {"color": colors(0.9 * number / max(1, len(kinds) - 1)), "linewidth": 1.3, "label": kind.name}
        if kind.is_stable is False:
            line |= {"color": ACCENT, "linewidth": 2.2, "label": f"{kind.name}: {_power(kind)}"}
        elif kind.is_stable is None:
            line |= {"linestyle": "dashed", "label": f"{kind.name}: undecided"}
        for row, values in zip(grid, (kind.sizes, kind.changes), strict=True):
            for panel, step in zip(row, steps, strict=True):
                if any(means := values(step)):
                    panel.plot(coordinates.factors, means, marker="o", markersize=3, **line)
    for row, label in zip(grid, ("mean |x|", "mean |x \N{MINUS SIGN} x at step 0|"), strict=True):
        row[0].set_ylabel(label, color=GRAY, fontsize=9)
        for panel, step in zip(row, steps, strict=True):
            _dress(panel, coordinates.factors)
            panel.set_title(f"step {step}", loc="left", fontsize=10, color=INK)
    for panel in grid[-1]:
        panel.set_xlabel("width over the narrow model's", color=GRAY, fontsize=9)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, labelcolor=INK, fontsize=7)
    heading(figure, f"{title} \N{EM DASH} {coordinates.summary}")
    return figure


def _shown_steps(last: int) -> list[int]:
    """Return the first, the last and some steps between."""
    count = min(_MAX_STEPS, last + 1)
    return sorted({round(last * index / (count - 1)) for index in range(count)})


def _power(kind: Kind) -> str:
    slope = kind.slope
    return "diverged" if slope is None or math.isnan(slope) else f"width^{slope:.2f}"


def _dress(panel: Any, factors: Sequence[int]) -> None:
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_xticks(factors, [f"x{factor}" for factor in factors], fontsize=8)
    panel.xaxis.set_minor_locator(importlib.import_module("matplotlib.ticker").NullLocator())
    dress(panel)

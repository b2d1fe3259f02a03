"""Draw a verification: the error of every module, and the losses of both models step by step."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mupscale_cli.checkpoints.json_files import MAX_LIST_BYTES, parse_json
from mupscale_cli.errors import PictureError
from mupscale_cli.files import read_errors, read_text
from mupscale_cli.reports.pictures.canvas import (
    ACCENT,
    COOL,
    GRAY,
    color_map,
    dress,
    heading,
    legend_beside,
    new_figure,
    whole_numbers,
)

if TYPE_CHECKING:
    from mupscale_cli.record.types import Verification

_MAX_KINDS = 12  # kinds of modules with a color each
_MAX_TICKS = 24
_LAYER = re.compile(r"^(.*?\.\d+)\.")


@dataclass(frozen=True)
class ModuleErrors:
    """Differences between the wide model's module outputs and those that the narrow model predicts.

    Attributes:
        names: names of the modules in execution order.
        errors: largest difference of each, relative to the narrow output's largest magnitude.
        tolerance: largest error that rounding explains.
        dtype: dtype of both models.
    """

    names: tuple[str, ...]
    errors: tuple[float, ...]
    tolerance: float
    dtype: str


@dataclass(frozen=True)
class Losses:
    """Losses of both models before each step.

    Attributes:
        narrow: losses of the narrow model (nats).
        wide: losses of the wide model (nats).
        tolerance: largest relative difference that rounding explains.
        optimizer: name of the optimizer.
        removed: what was removed from the wide weights before training, such as noise.
    """

    narrow: tuple[float, ...]
    wide: tuple[float, ...]
    tolerance: float
    optimizer: str
    removed: tuple[str, ...]

    @property
    def differences(self) -> tuple[float, ...]:
        """Relative difference of each step."""
        pairs = zip(self.narrow, self.wide, strict=True)
        return tuple(abs(a - b) / abs(a) if a else abs(b) for a, b in pairs)


def read_verification(file: Path) -> Verification:
    """Read a document that `mupscale verify --json` printed.

    Raises:
        PictureError: the file cannot be read, or is not such a document.
    """
    from mupscale_cli.record.schema import json_schema, mistake
    from mupscale_cli.record.types import Verification

    with read_errors(file, PictureError):
        text = read_text(file, MAX_LIST_BYTES)
    try:
        document = parse_json(text)
    except ValueError as error:
        raise PictureError(f"`{file}` is not valid JSON: {error}") from error
    if not isinstance(document, dict) or "function" not in document or "weights" not in document:
        raise PictureError(
            f"`{file}` was not printed by `mupscale verify --json`",
            hint="`mupscale verify WIDE --json > verified.json`",
        )
    if problem := mistake(document, json_schema(Verification)):
        raise PictureError(f"the verification in `{file}` is damaged: {problem}")
    return cast("Verification", document)


def module_errors(verification: Verification, title: str) -> ModuleErrors:
    """Extract the modules of a verification; those of a perturbed model are compared without its noise.

    Args:
        verification: the verification, as `--json` prints it.
        title: name of the checkpoint or file, for messages.

    Raises:
        PictureError: no modules were compared.
    """
    function = verification["function"]
    compared = function and (function["unperturbed"] or function)
    modules = compared.get("modules") if compared else None
    if not compared or not modules:
        raise PictureError(
            f"no module of `{title}` was compared",
            hint="`mupscale verify` compares modules if the method copies units and both models run",
        )
    names = tuple(module["what"] for module in modules)
    errors = tuple(float(module["max_rel"]) for module in modules)
    return ModuleErrors(names, errors, compared["tolerance"], compared["dtype"])


def step_losses(verification: Verification | None, title: str) -> Losses:
    """Extract the losses of a verification's optimizer steps.

    Args:
        verification: the verification, as `--json` prints it; None if there was none.
        title: name of the checkpoint or file, for messages.

    Raises:
        PictureError: no steps were taken.
    """
    training = verification["training"] if verification else None
    if not training:
        raise PictureError(f"the verification of `{title}` has no steps", hint="run `mupscale verify WIDE --steps 20`")
    narrow, wide = zip(*((float(a), float(b)) for a, b in training["losses"]), strict=True)
    return Losses(narrow, wide, float(training["tolerance"]), training["optimizer"], tuple(training["removed"]))


def draw_errors(modules: ModuleErrors, title: str) -> Any:
    """Draw the error of every module in execution order, and the tolerance; return a matplotlib figure."""
    figure = new_figure(8.5, 3.9)
    panel = figure.subplots()
    dress(panel)
    panel.set_yscale("log")
    low, high = _log_limits([*modules.errors, modules.tolerance])
    bottom, top = low * 1.2, high / 1.2
    shown = [top if math.isnan(error) else min(max(error, bottom), top) for error in modules.errors]
    kinds = list(dict.fromkeys(map(_kind, modules.names)))
    is_colored = len(kinds) <= _MAX_KINDS
    for number, kind in enumerate(kinds):
        places = [index for index, name in enumerate(modules.names) if _kind(name) == kind]
        color = color_map("tab20")(number % 20) if is_colored else COOL
        panel.plot(
            places,
            [shown[place] for place in places],
            "o",
            color=color,
            markersize=5,
            zorder=3,
            label=kind if is_colored else None,
        )
    wrong = [place for place, error in enumerate(modules.errors) if not error <= modules.tolerance]
    if wrong:
        panel.plot(
            wrong,
            [shown[place] for place in wrong],
            "o",
            markersize=10,
            markerfacecolor="none",
            markeredgecolor=ACCENT,
            markeredgewidth=1.6,
            label="beyond the tolerance",
            zorder=4,
        )
    panel.axhline(
        modules.tolerance,
        color=ACCENT,
        linewidth=1.4,
        linestyle=(0, (4, 3)),
        zorder=2,
        label=f"tolerance {modules.tolerance:.1e}",
    )
    panel.set_ylim(low, high)
    _layer_ticks(panel, modules.names)
    panel.set_ylabel(f"largest relative difference ({modules.dtype})", color=GRAY, fontsize=9)
    legend_beside(figure)
    heading(figure, title)
    return figure


def _kind(name: str) -> str:
    """Return a module's name inside its layer."""
    match = _LAYER.match(f"{name}.")
    return name[len(match.group(1)) + 1 :] or name if match else name


def _layer_ticks(panel: Any, names: Sequence[str]) -> None:
    """Put a tick at the start of each layer, at most 24."""
    layers = []
    for layer, members in groupby(range(len(names)), key=lambda index: _layer(names[index])):
        layers.append((next(members), layer))
    step = max(1, math.ceil(len(layers) / _MAX_TICKS))
    places, names = zip(*layers[::step], strict=True)
    panel.set_xticks(places, names, rotation=45, ha="right", fontsize=8)
    panel.margins(x=0.02)


def _layer(name: str) -> str:
    """Shorten the name of a module's layer: `layers.3`; outside of layers, the last part of its name."""
    match = _LAYER.match(f"{name}.")
    return ".".join(match.group(1).split(".")[-2:]) if match else name.rpartition(".")[2]


def draw_losses(losses: Losses, title: str) -> Any:
    """Draw both models' losses and, below, their relative difference; return a matplotlib figure."""
    figure = new_figure(8.5, 4.6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    steps = range(1, len(losses.narrow) + 1)
    dress(above)
    above.plot(steps, losses.narrow, color=GRAY, linewidth=4, alpha=0.55, label="narrow", solid_capstyle="round")
    wide = f"wide, without {' and '.join(losses.removed)}" if losses.removed else "wide"
    above.plot(steps, losses.wide, color=ACCENT, linewidth=1.4, marker="o", markersize=3, label=wide)
    above.set_ylabel("loss of the batch (nats)", color=GRAY, fontsize=9)
    dress(below)
    below.set_yscale("log")
    low, high = _log_limits([*losses.differences, losses.tolerance])
    shown = [min(max(value, low * 1.2), high) for value in losses.differences]
    below.plot(steps, shown, color=COOL, marker="o", markersize=3, linewidth=1, label="difference")
    below.axhline(
        losses.tolerance, color=ACCENT, linewidth=1.4, linestyle=(0, (4, 3)), label=f"tolerance {losses.tolerance:.1e}"
    )
    below.set_ylim(low, high)
    below.set_ylabel("relative difference", color=GRAY, fontsize=9)
    below.set_xlabel("optimizer step", color=GRAY, fontsize=9)
    whole_numbers(below.xaxis)
    legend_beside(figure)
    heading(figure, title)
    return figure


def _log_limits(values: Sequence[float]) -> tuple[float, float]:
    """Return limits, half a decade beyond the positive finite values; zero and infinity are drawn at the edges."""
    finite = [value for value in values if 0 < value < math.inf] or [1.0]
    return 10.0 ** (math.floor(math.log10(min(finite))) - 0.5), 10.0 ** (math.ceil(math.log10(max(finite))) + 0.5)

"""Draw the widening of a tensor: a block of W and the corresponding block of W', with lines between copied units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from mupscale_cli.checkpoints.header import ReadableTensor
from mupscale_cli.dtypes import DTYPES
from mupscale_cli.engine.expand import source_units
from mupscale_cli.engine.reading import read_rows
from mupscale_cli.errors import PictureError
from mupscale_cli.plan import Plan, TensorPlan
from mupscale_cli.plan.copies import FRESH
from mupscale_cli.plan.dims import DimMap
from mupscale_cli.reports.named_tensors import matching_names
from mupscale_cli.reports.pictures.canvas import GRAY, INK, heading, new_figure, whole_numbers
from mupscale_cli.tasks.recorded import RecordedWidening
from mupscale_cli.text import number_text

BLOCK = 48  # default number of rows and columns of W'
_MAX_LINES = 64
_MAX_NUMBERS = 64  # values that a block shows as numbers, too


@dataclass(frozen=True)
class Blocks:
    """Corresponding corners of a tensor before and after widening.

    Attributes:
        tensor: plan of the tensor.
        narrow: values that the wide block copies, (rows, columns), float64.
        wide: values of the wide block, (rows, columns), float64.
        sources: for each row and for each column of the wide block, the index of the narrow one that it copies.
    """

    tensor: TensorPlan
    narrow: Tensor
    wide: Tensor
    sources: tuple[tuple[int, ...], tuple[int, ...]]


def choose_tensor(plan: Plan, name: str | None) -> TensorPlan:
    """Return the tensor that a name means; by default the first matrix that grows in both dimensions.

    Raises:
        PlanError: no tensor has this name.
        PictureError: the tensor has no floating-point values to show.
    """
    by_name = {tensor.target.name: tensor for tensor in plan.tensors}
    if name is not None:
        chosen = by_name[matching_names(name, by_name)[0]]
    else:
        growing = [tensor for tensor in plan.tensors if tensor.source.shape != tensor.target.shape]
        matrices = [tensor for tensor in growing if sum(dim.size < dim.wide_size for dim in tensor.dims) > 1]
        chosen = next(iter((*matrices, *growing, *plan.tensors)))
    if DTYPES[chosen.source.dtype].kind != "float" or not chosen.source.shape or not chosen.source.num_elements:
        raise PictureError(
            f"`{chosen.target.name}` has no floating-point values to show", hint="choose a tensor with `--tensor NAME`"
        )
    return chosen


def read_blocks(widening: RecordedWidening, tensor: TensorPlan, size: int = BLOCK) -> Blocks:
    """Read the first rows and columns of a tensor before and after widening.

    A block has the tensor's first two dimensions, at index 0 of the others; a vector is a column.

    Args:
        widening: the recorded widening with both checkpoints.
        tensor: plan of the tensor.
        size: maximum number of rows and columns of the wide block.

    Raises:
        CheckpointError: a file ends too early.
    """
    dims = tensor.dims[:2]
    sources = [copied_units(dim)[:size] for dim in dims]
    rows = sources[0]
    columns = sources[1] if len(dims) > 1 else (0,)
    narrow_shape = (max(rows) + 1, max(columns) + 1)
    narrow = _corner(widening.narrow.tensors[tensor.source.name], narrow_shape)
    wide = _corner(widening.wide.tensors[tensor.target.name], (len(rows), len(columns)))
    return Blocks(tensor, narrow, wide, (rows, columns))


def copied_units(dim: DimMap) -> tuple[int, ...]:
    """Return, for each new index of a dimension, the old index that it copies; FRESH where it copies none."""
    return tuple(source_units(dim).tolist())


def _corner(stored: ReadableTensor, shape: tuple[int, int]) -> Tensor:
    """Read the first rows and columns of a stored tensor."""
    rows, columns = shape
    values = read_rows(stored, max(1, rows))
    while values.dim() > 2:
        values = values[..., 0]
    return values.reshape(values.shape[0], -1)[:, : max(1, columns)].to(torch.float64)


def draw_weights(blocks: Blocks) -> Any:
    """Draw both blocks, each with its own color range: W' = c R(W) has the colors of W. Return a matplotlib figure."""
    tensor = blocks.tensor
    narrow_rows, narrow_columns = blocks.narrow.shape
    rows, columns = blocks.wide.shape
    ratio = [max(0.5, min(2.0, columns / max(rows, 1))), max(0.5, min(2.0, narrow_columns / max(narrow_rows, 1)))]
    figure = new_figure(4.0 * sum(ratio) / 2 + 4.2, 4.3)
    left, right = figure.subplots(1, 2)
    c = " ".join(dict.fromkeys(number_text(c) for c, _ in tensor.parts))
    m = " ".join(dict.fromkeys(str(m) for _, m in tensor.parts))
    before = _extent_text(blocks.narrow.shape, tensor.source.shape)
    after = _extent_text(blocks.wide.shape, tensor.target.shape)
    _draw_block(figure, left, blocks.narrow, f"W, {before}")
    _draw_block(figure, right, blocks.wide, f"W', {after};  c = {c}, m = {m}")
    _draw_lines(right, blocks.sources)
    heading(figure, f"{tensor.target.name}:  {tensor.layout}")
    return figure


def _extent_text(shown: Sequence[int], shape: Sequence[int]) -> str:
    whole = "x".join(map(str, shape))
    part = "x".join(map(str, shown[: len(shape)]))
    return f"all of {whole}" if tuple(shown[: len(shape)]) == tuple(shape) else f"the first {part} of {whole}"


def _draw_block(figure: Any, panel: Any, values: Tensor, title: str) -> None:
    finite = values[torch.isfinite(values)]
    limit = float(finite.abs().max()) if finite.numel() else 1.0
    picture = panel.imshow(
        values.tolist(),
        cmap="RdBu_r",
        vmin=-limit or -1.0,
        vmax=limit or 1.0,
        interpolation="nearest",
        aspect="auto" if min(values.shape) == 1 else "equal",
    )
    panel.set_title(title, loc="left", fontsize=9, color=INK)
    for axis in (panel.xaxis, panel.yaxis):
        whole_numbers(axis)
    if values.numel() <= _MAX_NUMBERS:
        _write_numbers(panel, values, limit)
    panel.tick_params(colors=GRAY, length=0, labelsize=7)
    for spine in panel.spines.values():
        spine.set_visible(False)
    bar = figure.colorbar(picture, ax=panel, shrink=0.8, aspect=30)
    bar.ax.tick_params(colors=GRAY, length=0, labelsize=7)
    bar.outline.set_visible(False)


def _write_numbers(panel: Any, values: Tensor, limit: float) -> None:
    """Write each value into its cell, in white where the color is dark."""
    size = min(14.0, 56 / max(values.shape))  # points: `-0.0083` just fits into a cell
    for row, line in enumerate(values.tolist()):
        for column, value in enumerate(line):
            color = "white" if abs(value) > 0.6 * limit else INK
            panel.text(column, row, f"{value:.2g}", ha="center", va="center", color=color, fontsize=size)


def _draw_lines(panel: Any, sources: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    """Draw lines between the copies of one unit and those of the next, or between copied runs of units."""
    rows, columns = sources
    for place in boundaries(rows):
        panel.axhline(place - 0.5, color=INK, linewidth=0.5, alpha=0.6)
    for place in boundaries(columns):
        panel.axvline(place - 0.5, color=INK, linewidth=0.5, alpha=0.6)


def boundaries(sources: Sequence[int]) -> list[int]:
    """Return the positions where the next unit's copies start or, if copies are not adjacent, the next run of units.

    Args:
        sources: for each new index, the old index that it copies, or FRESH.
    """
    pairs = list(pairwise(sources))
    step = 0 if any(before == after != FRESH for before, after in pairs) else 1
    places = [
        place
        for place, (before, after) in enumerate(pairs, 1)
        if after != before + step and not before == after == FRESH
    ]
    return places if len(places) <= _MAX_LINES else []

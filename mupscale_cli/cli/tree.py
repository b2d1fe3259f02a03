"""Show a plan as a tree: similar layers folded, shapes before and after, one color per axis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle

from rich.console import Console
from rich.text import Text

from mupscale_cli.architecture.layouts import AxisRef, Layout, axis_refs, parse_layout
from mupscale_cli.cli.output import bytes_text, number_text, table
from mupscale_cli.cli.tables import Hanging, OpenTable
from mupscale_cli.plan import Plan, TensorPlan
from mupscale_cli.reports.outline import Node, outline

_COLORS = ("cyan", "green", "magenta", "yellow", "blue", "red")
_GUIDES = (
    "\u251c\u2500 ",
    "\u2502  ",
    "\u2514\u2500 ",
    "   ",
)  # before a child, before its descendants; the same for the last child
_ASCII_GUIDES = ("|- ", "|  ", "`- ", "   ")
_INDENT = "  "


def axis_styles(plan: Plan) -> dict[str, str]:
    """Return the colors of the widened axes or, in a plan that widens none, of all."""
    names = [axis.name for axis in plan.axes if axis.name in plan.used and (axis.ratio > 1 or not plan.factors)]
    return dict(zip(names, cycle(_COLORS), strict=False))


def tensors_tree(plan: Plan, console: Console) -> OpenTable:
    """Return a table with the tree of tensors: shapes, layout, coefficient, multiplicity, bytes of the output."""
    several = len({tensor.target.dtype for tensor in plan.tensors}) > 1
    kind, change = ("type",) if several else (), ("c", "m") if plan.factors else ()
    result = table("tensor", "shape", "layout", *kind, *change, "bytes", right=("c", "m", "bytes"))
    styles = axis_styles(plan)
    guides = _ASCII_GUIDES if console.options.ascii_only else _GUIDES
    for node, label in _lines(outline(plan), "", guides, is_root=True):
        size = bytes_text(node.num_bytes[1])
        if node.children:
            result.add_row(label, "", "", *("" for _ in (*kind, *change)), size, style="bold")
            continue
        tensor = node.tensors[0]
        scales = (_distinct(number_text(c) for c, _ in tensor.parts), _distinct(str(m) for _, m in tensor.parts))
        result.add_row(
            label,
            shape_text(tensor, styles),
            layout_text(tensor.layout, styles),
            *((tensor.target.dtype,) if several else ()),
            *(scales if change else ()),
            size,
        )
    return result


def _distinct(texts: Iterator[str]) -> str:
    return " ".join(dict.fromkeys(texts))


def _lines(
    nodes: Sequence[Node], before: str, guides: Sequence[str], *, is_root: bool
) -> Iterator[tuple[Node, Hanging]]:
    """Yield every node with its name after the guide lines that lead to it."""
    for number, node in enumerate(nodes):
        is_last = number == len(nodes) - 1
        branch, below = ("", "") if is_root else (guides[2:] if is_last else guides[:2])
        stem = guides[1] if node.children else guides[3]
        label = Text(before + branch, style="not bold dim") + Text(node.label)
        yield node, Hanging(label, before + below + (stem if node.children else _INDENT))
        yield from _lines(node.children, before + below, guides, is_root=False)


def layout_text(layout: str, styles: Mapping[str, str]) -> Text:
    """Color a layout's axes, and omit the name of a composite model's part if all axes share it."""
    if layout == "keep":
        return Text(layout)
    text, position = Text(), 0
    named = [(ref.name if isinstance(ref, AxisRef) else ref.axis, ref.span) for ref in axis_refs(parse_layout(layout))]
    parts = {name.rpartition(".")[0] for name, _ in named}
    part = f"{parts.pop()}." if len(parts) == 1 else ""
    for name, (start, end) in named:
        text.append(layout[position:start])
        text.append(layout[start:end].removeprefix(part), style=styles.get(name, ""))
        position = end
    return text.append(layout[position:])


def shape_text(tensor: TensorPlan, styles: Mapping[str, str]) -> Text:
    """Return `64x48 -> 256x192`, with each size in the color of its first colored axis."""
    before, after = tensor.source.shape, tensor.target.shape
    colors = _dim_styles(tensor, styles)
    text = _sizes(before, colors)
    return text if before == after else text + Text(" -> ", style="dim") + _sizes(after, colors)


def _sizes(shape: Sequence[int], colors: Sequence[str]) -> Text:
    sizes = [Text(str(size), style=color) for size, color in zip(shape, colors, strict=True)]
    return Text("x").join(sizes) if sizes else Text("scalar")


def _dim_styles(tensor: TensorPlan, styles: Mapping[str, str]) -> list[str]:
    """Return the color of each dimension."""
    if tensor.layout == "keep":
        return [""] * len(tensor.source.shape)
    colors = []
    for dim in parse_layout(tensor.layout).dims:
        refs = axis_refs(Layout((dim,), (), 0, dim.span))
        colors.append(next((styles[ref.name] for ref in refs if isinstance(ref, AxisRef) and ref.name in styles), ""))
    return colors

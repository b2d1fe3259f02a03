"""Finding what a block writes to the residual stream with: if it is zero, the block is the identity (page `theory`)."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from typing import Any

from mupscale_cli.architecture.layouts import AxisRef, Layout, Norm, axis_refs
from mupscale_cli.architecture.types import Choice


def stream_axes(layouts: Mapping[str, Choice[Any]], in_blocks: Container[str]) -> frozenset[str]:
    """Return the axes that tensors outside of all blocks have: the residual stream is among them.

    Args:
        layouts: chosen layout of each tensor by its name.
        in_blocks: the tensors in blocks.
    """
    outside = _distinct(choice.value for name, choice in layouts.items() if name not in in_blocks)
    return frozenset(axis for layout in outside for axis in _axes(layout))


def find_writers(layouts: Mapping[str, Choice[Any]], streams: frozenset[str]) -> frozenset[str]:
    """Return the tensors of blocks in which the contribution of a block to the residual stream is linear.

    These are the last projections, which sum over some axis and whose output is the stream, and their biases. If a norm
    follows a projection directly, they are its gain and bias instead.

    Args:
        layouts: chosen layout of each tensor in a block by its name.
        streams: as `stream_axes` returns them.
    """
    inside = {name: layout for name, choice in layouts.items() if isinstance(layout := choice.value, Layout)}
    distinct = _distinct(inside.values())
    projections = {id(layout) for layout in distinct if _sums(layout) and _written(layout) & streams}
    biases = {id(layout) for layout in distinct if not _sums(layout) and _written(layout) & streams}
    following = {id(layout): norm.of for layout in distinct if (norm := _norm_behind(layout, streams))}
    gains = {name: following[id(layout)] for name, layout in inside.items() if id(layout) in following}
    weights = {name for name, layout in inside.items() if id(layout) in projections}
    weights -= _in_front(gains, weights)
    return frozenset(
        name
        for name, layout in inside.items()
        if name in weights or name in gains or (id(layout) in biases and _is_added(name, inside, weights))
    )


def _is_added(bias: str, layouts: Container[str], writers: Collection[str]) -> bool:
    """Tell whether a bias belongs to a writer, or to no weight but to a module that contains one."""
    weight = _weight(bias)
    if weight in layouts or not bias.endswith(".bias"):
        return weight in writers
    return any(writer.startswith(bias.removesuffix("bias")) for writer in writers)


def _in_front(gains: Mapping[str, str | None], weights: Iterable[str]) -> set[str]:
    """Return the projections in front of norms: those of the named module nearest to each gain, in its own block."""
    modules = set(gains.values())
    within: dict[tuple[str, str | None], list[str]] = {}
    for weight in weights:
        if (module := _module(weight)) in modules:
            for scope in _scopes(weight):
                within.setdefault((scope, module), []).append(weight)
    nearest = (
        next((within[scope, module] for scope in _scopes(gain) if (scope, module) in within), ())
        for gain, module in gains.items()
    )
    return set(itertools.chain.from_iterable(nearest))


def _scopes(name: str) -> Iterator[str]:
    """Yield the modules around a tensor, innermost first."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def sum_norm(layouts: Mapping[str, Choice[Any]], streams: frozenset[str]) -> str | None:
    """Return a norm that subtracts the mean of the residual stream itself, under which no block is the identity.

    Args:
        layouts: chosen layout of each tensor in a block by its name.
        streams: as `stream_axes` returns them.
    """
    for name, choice in layouts.items():
        norm = _norm_behind(choice.value, streams) if isinstance(choice.value, Layout) else None
        if norm is not None and norm.kind == "layer":
            return name
    return None


def _distinct(layouts: Iterable[Any]) -> Iterable[Layout]:
    return {id(layout): layout for layout in layouts if isinstance(layout, Layout)}.values()


def _axes(layout: Layout) -> set[str]:
    return {ref.name for ref in axis_refs(layout) if isinstance(ref, AxisRef)}


def _sums(layout: Layout) -> bool:
    return any(ref.contracted or ref.averaged for ref in axis_refs(layout) if isinstance(ref, AxisRef))


def _written(layout: Layout) -> set[str]:
    """Return the axes that fill a whole dimension of the layer's output."""
    return {dim.name for dim in layout.dims if isinstance(dim, AxisRef) and not (dim.contracted or dim.averaged)}


def _norm_behind(layout: Layout, streams: frozenset[str]) -> Norm | None:
    """Return the norm over the stream that a tensor is the gain or bias of, if it follows directly on a projection."""
    return layout.norm if layout.norm and layout.norm.of and _written(layout) & streams else None


def _module(weight: str) -> str:
    return weight.removesuffix(".weight").rpartition(".")[2]


def _weight(bias: str) -> str:
    """Return the name of the weight that a bias belongs to: `fc2.weight` for `fc2.bias`, `down` for `down_bias`."""
    stem = bias.removesuffix("bias")
    return f"{stem}weight" if stem.endswith(".") else stem.removesuffix("_")

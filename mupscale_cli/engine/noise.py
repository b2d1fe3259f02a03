"""Adding noise to blocks of widened tensors. The noise depends only on tensor name, seed and element."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mupscale_cli.engine.blocks import Place
from mupscale_cli.engine.expand import dim_index, is_regular, share_views
from mupscale_cli.engine.random import fill_normal, noise_key
from mupscale_cli.plan.dims import Strip
from mupscale_cli.plan.perturbation import Noise, Perturbation

_CHUNK = 1 << 17  # elements at a time, so that the working set fits the cache (`tests/benchmarks/noise.py`)
_WIDE = {torch.float64: torch.float64, torch.float32: torch.float64}  # for sums that have to be exact


def add_noise(
    stack: Tensor,
    out: Tensor,
    noise: Noise,
    std: float,
    strips: Sequence[Strip],
    columns: Sequence[Sequence[Strip]],
    places: Sequence[Place],
) -> None:
    """Fill `out` with a block of a widened tensor plus noise, rounded once.

    Function-preserving noise does not change the sum of an element's shares, up to one rounding (page `noise`).

    Args:
        stack: (places, rows, ...), the block at each of its places, which hold the shares of one split.
        out: of the same shape and type as `stack`, or `stack` itself; elements that copy none are not filled if the
            noise preserves the function.
        noise: noise of the tensor.
        std: standard deviation of the noise; relative to each element with the scale `elementwise`.
        strips: map of the block's rows.
        columns: maps of all other dimensions.
        places: positions in the tensor; rows of `out` without a position are not filled.
    """
    key = noise_key(noise.perturbation.seed, noise.name)
    row_size = stack[0, 0].numel()
    if noise.perturbation.mode != "preserving":
        for values, target, place in zip(stack, out, places, strict=True):
            for run in place:
                rows = slice(run.first, run.first + run.count)
                start = run.row * row_size
                _add_free(values[rows].view(-1), target[rows].view(-1), key, start, std, noise.perturbation)
        return
    normal = torch.empty(stack.shape, dtype=torch.float32)
    for target, place in zip(normal, places, strict=True):
        for run in place:
            fill_normal(target[run.first : run.first + run.count].view(-1), key, run.row * row_size)
    if noise.perturbation.is_relative:  # shares of one element differ by no more than rounding
        normal *= stack.abs()
    dims = (strips, *columns)
    preserve = _preserve_strided if is_regular(dims) else _preserve_indexed
    preserve(stack, normal, out, dims, std)


def _add_free(values: Tensor, target: Tensor, key: int, start: int, std: float, perturbation: Perturbation) -> None:
    """Add noise a chunk at a time, in float64 for float64 tensors and in float32 for all others.

    Products and sums are separate operations, so that no machine fuses them into one with a different rounding.

    Args:
        values: elements of the widened tensor.
        target: receives them with their noise.
        key: key of the tensor's noise.
        start: position of the first element in the tensor.
        std: standard deviation of the noise.
        perturbation: whether it is relative to each element, and which share of the norm the values keep.
    """
    share = perturbation.share
    chunk = torch.empty(min(_CHUNK, len(values)), dtype=torch.float32)
    wide = torch.empty(chunk.shape, dtype=torch.promote_types(values.dtype, torch.float32))
    for begin in range(0, len(values), _CHUNK):
        part, place = values[begin : begin + _CHUNK], target[begin : begin + _CHUNK]
        normal = chunk[: len(part)]
        fill_normal(normal, key, start + begin, std)
        base = wide[: len(part)].copy_(part)  # converting first is faster than mixed types
        if perturbation.is_relative:
            normal.mul_(base.abs())
        place.copy_(base.mul_(share).add_(normal) if share != 1 else base.add_(normal))


def _preserve_strided(stack: Tensor, normal: Tensor, out: Tensor, dims: Sequence[Sequence[Strip]], std: float) -> None:
    """Add preserving noise for regular maps, one strided view per share."""
    views = [[share_views(tensor[place], dims) for place in range(len(stack))] for tensor in (stack, normal, out)]
    for parts in zip(*(zip(*places, strict=True) for places in views), strict=True):
        chunks = ([_chunks(share) for place in part for share in place] for part in parts)
        for chunk in zip(*(zip(*shares, strict=True) for shares in chunks), strict=True):
            _preserve(*chunk, std=std)


def _chunks(view: Tensor) -> Sequence[Tensor]:
    """Split a view into parts of about a chunk."""
    parts = -(-view.numel() // _CHUNK)
    dim = next((dim for dim, size in enumerate(view.shape) if size >= parts), 0)
    return view.tensor_split(parts, dim)


def _preserve(shares: Sequence[Tensor], normal: Sequence[Tensor], results: Sequence[Tensor], *, std: float) -> None:
    """Fill `results` with shares plus noise whose sum over the shares of an element is zero.

    Subtracting the mean over K shares leaves (1 - 1/K) of the variance, so the noise is scaled up accordingly. The last
    share is whatever makes the sum exact: its own noise and the rounding errors of the others.
    """
    count, dtype = len(shares), shares[0].dtype
    if count == 1:
        results[0].copy_(shares[0])
        return
    wide = _WIDE.get(dtype, torch.float32)
    planes = [plane.contiguous() for plane in normal]  # contiguous memory makes the following operations faster
    mean = sum(planes[1:], start=planes[0]) / count
    *exact, missing = (share.to(wide, memory_format=torch.contiguous_format, copy=True) for share in shares)
    for share, plane, result in zip(exact, planes, results, strict=False):
        noisy = plane.sub_(mean).mul_(std * math.sqrt(count / (count - 1))).to(wide).add_(share).to(dtype)
        result.copy_(noisy)
        missing += share.sub_(noisy)
    results[-1].copy_(missing)


def _preserve_indexed(stack: Tensor, normal: Tensor, out: Tensor, dims: Sequence[Sequence[Strip]], std: float) -> None:
    """Add preserving noise for any map, whose elements may have different numbers of shares, with sums over indices."""
    index = [dim_index(strips, size) for strips, size in zip(dims, stack.shape[1:], strict=True)]
    place = torch.arange(len(stack))
    along = [[-1 if other == position else 1 for other in range(stack.dim())] for position in range(stack.dim())]
    num_shares, is_last = torch.tensor(float(len(stack)), dtype=torch.float32), (place == len(stack) - 1).view(along[0])
    for item, shape in zip(index, along[1:], strict=True):
        num_shares = num_shares * item.num_shares.view(shape)
        is_last = is_last & (item.share == item.num_shares - 1).view(shape)

    def over_shares(values: Tensor) -> Tensor:
        values = values.sum(0, keepdim=True).expand(values.shape)
        for position, item in enumerate(index, 1):
            if bool((item.num_shares > 1).any()):
                sums = torch.zeros_like(values, memory_format=torch.contiguous_format)
                values = sums.index_add_(position, item.group, values).index_select(position, item.group)
        return values

    normal = normal - over_shares(normal) / num_shares
    normal *= torch.where(num_shares > 1, std * (num_shares / (num_shares - 1).clamp_min(1)).sqrt(), 0.0)
    exact = stack.to(_WIDE.get(stack.dtype, torch.float32))
    result = (exact + normal).to(stack.dtype)
    missing = over_shares(exact - result.to(exact.dtype))
    torch.where(is_last, (missing + result).to(stack.dtype), result, out=out)

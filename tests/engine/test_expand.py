"""Expansion of tensors, compared with an enumeration of all elements and exact fractions."""

import itertools
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import BITS, any_floats
from mupscale_cli.architecture.layouts import parse_layout
from mupscale_cli.engine.blocks import row_blocks
from mupscale_cli.engine.expand import dim_index, expand, scale_elements
from mupscale_cli.plan.copies import Axis
from mupscale_cli.plan.dims import map_dim
from mupscale_cli.plan.methods import METHODS

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
AXES = {"a": Axis("a", 2, 3), "b": Axis("b", 3, 1), "c": Axis("c", 2, 2)}


# Against an enumeration of every element ------------------------------------------------------


def naive(source, dims, axes):
    """Return, for each wide element, the narrow element and the number of shares into which the layer splits it."""
    maps = []
    for dim, size in zip(dims, source.shape, strict=True):
        mapped = map_dim(dim, axes, size)
        found = {}
        for strip in mapped.strips:
            ranges = [range(d.units.size * d.units.copies) for d in strip.digits]
            for wide in itertools.product(*ranges):
                units = [w // d.units.copies for w, d in zip(wide, strip.digits, strict=True)]
                s = strip.offset + sum(u * d.stride for u, d in zip(units, strip.digits, strict=True))
                w = strip.wide_offset + sum(i * d.wide_stride for i, d in zip(wide, strip.digits, strict=True))
                found[w] = s, strip.pieces, strip.scale
        maps.append([found[w] for w in range(mapped.wide_size)])
    return maps


def expand_all(source, text):
    dims = parse_layout(text).dims
    maps = [map_dim(dim, AXES, size) for dim, size in zip(dims, source.shape, strict=True)]
    target = torch.full([m.wide_size for m in maps], float("nan"), dtype=source.dtype)
    expand(source, target, tuple(m.strips for m in maps))
    return target, naive(source, dims, AXES)


LAYOUTS = {
    "a, /c": (2, 2),
    "/a, /c": (2, 2),
    "(a b), /(c a)": (6, 4),
    "/(c 2), b": (4, 3),
    "[a + /c], /a": (4, 2),
    "(b [a + c]), (/a b)": (12, 6),
    "([a + b] [a + b])": (25,),
    "/a, b, c, 2": (2, 3, 2, 2),
    "(/a /c)": (4,),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_wide_element_copies_its_source_and_shares_add_up(layout, dtype):
    shape = LAYOUTS[layout]
    source = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    target, maps = expand_all(source, layout)
    sums = {}
    for wide in itertools.product(*map(range, target.shape)):
        places = [found[i] for found, i in zip(maps, wide, strict=True)]
        narrow, pieces = tuple(p[0] for p in places), 1
        for _, count, _ in places:
            pieces *= count
        share = Fraction(target[wide].item())
        key = narrow
        total, copies, _ = sums.get(key, (0, 0, 1))
        sums[key] = total + share, copies + 1, pieces
    for narrow, (total, copies, pieces) in sums.items():
        # Copies that are not shares repeat the sum.
        assert total == Fraction(source[narrow].item()) * copies / pieces
    assert len(sums) == source.numel()


def test_scales_and_offsets_round_once():
    source = torch.tensor([0.1, -0.7, 2.0], dtype=torch.float32)
    target = torch.empty(3)
    (dim,) = parse_layout("b").dims
    expand(source, target, (map_dim(dim, AXES, 3).strips,), scale=1 / 3, offset=1)
    expected = [(1 + value) * (1 / 3) - 1 for value in source.double().tolist()]
    assert target.tolist() == torch.tensor(expected, dtype=torch.float64).float().tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [2.0, 0.25, 3.0, 0.1, 2**0.5, 2.0**-20, 1e5], ids=str)
def test_a_scale_rounds_once_even_if_the_type_cannot_represent_it(scale, dtype):
    values = any_floats(dtype, 3000, 1)
    found, expected = scale_elements(values, scale, 0), (values.double() * scale).to(dtype)
    bits = BITS[dtype.itemsize]  # the sign of zero and infinities too
    assert torch.equal(found.view(bits), expected.view(bits))


def arranged(arrangement, uneven=False):
    return {name: replace(axis, arrangement=arrangement, uneven=uneven) for name, axis in AXES.items()}


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_irregular_maps_copy_their_source_and_shares_add_up(layout, method, uneven):
    """Compares each element with the index of each dimension; elements that copy none are fresh."""
    shape = LAYOUTS[layout]
    source = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    axes = arranged(METHODS[method](), uneven)
    maps = [map_dim(dim, axes, size) for dim, size in zip(parse_layout(layout).dims, shape, strict=True)]
    target = torch.full([m.wide_size for m in maps], float("nan"))
    expand(source, target, tuple(m.strips for m in maps), fresh=9.0)
    indices = [dim_index(m.strips, m.wide_size) for m in maps]
    sums = {}
    for wide in itertools.product(*map(range, target.shape)):
        at = list(zip(indices, wide, strict=True))
        if any(index.is_fresh[i] for index, i in at):
            assert target[wide] == 9
            continue
        group = tuple(int(index.group[i]) for index, i in at)
        narrow = tuple(int(index.source[i]) for index, i in at)
        total, known = sums.get(group, (0, narrow))
        assert known == narrow
        sums[group] = total + Fraction(target[wide].item()), narrow
    for total, narrow in sums.values():
        assert total == Fraction(source[narrow].item())


@settings(max_examples=150)
@given(
    arrangement=st.sampled_from([method() for method in METHODS.values()]),
    uneven=st.booleans(),
    layout=st.sampled_from(["(a b c)", "/(a b c)", "[(a b) + /c]", "(b [a + c])", "/(a [b + b])", "a", "(c /a)", "b"]),
    rest=st.sampled_from(["", ", /a", ", c"]),
    max_bytes=st.sampled_from([1, 8, 40, 200, 10_000]),
)
def test_blocks_of_any_size_give_the_same_tensor(arrangement, uneven, layout, rest, max_bytes):
    dims = parse_layout(layout + rest).dims
    sizes = {
        "(a b c)": 12,
        "/(a b c)": 12,
        "[(a b) + /c]": 8,
        "(b [a + c])": 12,
        "/(a [b + b])": 12,
        "a": 2,
        "(c /a)": 4,
        "b": 3,
    }
    shape = (sizes[layout], *((2,) if rest else ()))
    source = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    axes = arranged(arrangement, uneven)
    rows, *columns = (map_dim(dim, axes, size) for dim, size in zip(dims, shape, strict=True))
    whole = torch.empty([rows.wide_size, *(column.wide_size for column in columns)])
    strips = tuple(column.strips for column in columns)
    expand(source, whole, (rows.strips, *strips))
    pieced = torch.full_like(whole, float("nan"))
    row_bytes = 4 * whole[0].numel()
    for block in row_blocks(rows, row_bytes, max_bytes):
        part = source[block.row : block.row + block.num_rows]
        for group in block.groups:
            for piece, place in enumerate(group):
                out = torch.empty(block.num_wide_rows, *whole.shape[1:])
                expand(part, out, (block.strips, *strips), piece=piece, num_pieces=len(group))
                for run in place:
                    rows = slice(run.row, run.row + run.count)
                    assert pieced[rows].isnan().all()
                    pieced[rows] = out[run.first : run.first + run.count]
    assert pieced.isfinite().all()
    assert torch.equal(whole, pieced)

"""Exact splitting, compared with exact fractions."""

from fractions import Fraction

import pytest
import torch

from helpers import BITS, any_floats
from mupscale_cli.engine.splitting import EqualShares, LookedUpShares, give_first, split, split_exactly

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_shares", [1, 2, 3, 5, 6, 7, 12])
def test_split_exactly_adds_up_to_the_source_in_exact_arithmetic(dtype, num_shares):
    values = any_floats(dtype, 1000, num_shares)
    shares = split_exactly(values, num_shares)
    parts = torch.stack([shares.share(index) for index in range(num_shares)])
    for value, column in zip(values.double().tolist(), parts.double().T.tolist(), strict=True):
        assert sum(map(Fraction, column)) == Fraction(value)
    # All shares of an element are neighboring numbers.
    low, high = parts.min(0).values, parts.max(0).values
    assert bool(((low == high) | (torch.nextafter(low, high) == high)).all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_powers_of_two_split_into_equal_shares(dtype):
    values = torch.randn(100, generator=torch.Generator().manual_seed(0)).to(dtype)
    shares = split(values, 8)
    assert isinstance(shares, EqualShares)
    assert torch.equal(shares.share(3) * 8, values)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_shares", [1, 2, 4, 64])
def test_shares_are_equal_down_to_the_smallest_normal_number(dtype, num_shares):
    least = torch.tensor(torch.finfo(dtype).tiny, dtype=dtype) * num_shares
    below = torch.nextafter(least, torch.zeros((), dtype=dtype))
    for sign in (1, -1):
        values = torch.stack([least, torch.zeros_like(least), -torch.zeros_like(least), least * 3]) * sign
        assert isinstance(split(values, num_shares), EqualShares)
        for small in (below, torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps):
            values = torch.stack([least, torch.as_tensor(small, dtype=dtype) * sign])
            found, expected = split(values, num_shares), split_exactly(values, num_shares)
            assert not isinstance(found, EqualShares)
            for index in range(num_shares):
                assert torch.equal(found.share(index), expected.share(index))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_shares", [2, 4, 8])
def test_equal_shares_match_the_general_split(dtype, num_shares):
    values = any_floats(dtype, 4000, num_shares)
    values = values[(values == 0) | (values.double().abs() >= torch.finfo(dtype).tiny * num_shares)]
    found, expected = split(values, num_shares), split_exactly(values, num_shares)
    assert isinstance(found, EqualShares)
    bits = BITS[dtype.itemsize]
    assert torch.equal(found.share(0).view(bits), expected.share(0).view(bits))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_shares", [2, 3, 7, 64])
def test_shares_of_16_bit_floats_are_looked_up(dtype, num_shares):
    numbers = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(dtype)
    shuffled = numbers[torch.randperm(1 << 16, generator=torch.Generator().manual_seed(0))].view(256, 256).T
    found, expected = split(shuffled, num_shares), split_exactly(shuffled, num_shares)
    assert isinstance(found, LookedUpShares)
    for index in range(num_shares):
        assert torch.equal(found.share(index).view(torch.int16), expected.share(index).view(torch.int16))


def test_give_first_puts_everything_into_the_first_share():
    values = torch.tensor([3.0, -1.0])
    shares = give_first(values, 3)
    assert [shares.share(index).tolist() for index in range(3)] == [[3.0, -1.0], [0.0, 0.0], [0.0, 0.0]]


def test_elements_can_have_different_numbers_of_shares():
    values = torch.tensor([1.0, 1.0, 0.3])
    counts = torch.tensor([1, 3, 7])
    shares = split_exactly(values, counts)
    for value, count, *parts in zip(values, counts, *(shares.share(i) for i in range(7)), strict=True):
        assert sum(Fraction(part.item()) for part in parts[:count]) == Fraction(value.item())

"""The random number generator: random access, pinned first numbers, distribution."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mupscale_cli.engine.random import fill_normal, noise_key


def normal(count, key=1, start=0):
    out = torch.empty(count)
    fill_normal(out, key, start)
    return out


@given(st.integers(0, 2**40), st.integers(1, 200), st.integers(0, 150))
def test_any_part_of_a_sequence_can_be_computed_on_its_own(start, count, skip):
    whole = normal(skip + count, start=start)
    assert torch.equal(whole[skip:], normal(count, start=start + skip))


def test_long_parts_equal_short_ones():
    whole = normal(200_000, start=3)
    assert torch.equal(whole[70_001:70_101], normal(100, start=70_004))


def test_the_first_numbers_of_a_key_are_pinned():
    """Every version must reproduce the noise, since verifying a checkpoint generates it again."""
    assert noise_key(0, "w") == 8665583686924118448
    assert normal(4, key=noise_key(0, "w")).tolist() == pytest.approx(
        [-0.2627571, -0.7234530, 0.5637146, -1.0781760], abs=1e-6
    )


def test_numbers_are_standard_normal():
    numbers = normal(1 << 20, key=noise_key(3, "x")).double()
    error = 1 / math.sqrt(len(numbers))
    assert abs(numbers.mean()) < 4 * error
    assert abs(numbers.square().mean() - 1) < 4 * math.sqrt(2) * error
    assert abs(numbers.pow(4).mean() - 3) < 4 * math.sqrt(96) * error
    for limit, share in ((1, 0.682689), (2, 0.954500), (3, 0.997300)):
        assert (numbers.abs() < limit).double().mean() == pytest.approx(share, abs=2 * error)


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 5, 8, 64])
def test_neighbors_and_lanes_are_independent(lag):
    numbers = normal(1 << 18).double()
    correlation = (numbers[lag:] * numbers[:-lag]).mean()
    assert abs(correlation) < 4 / math.sqrt(len(numbers))


def test_names_and_seeds_change_the_noise():
    base = normal(1 << 16, noise_key(0, "a")).double()
    for key in (noise_key(0, "b"), noise_key(1, "a"), noise_key(0, "a") + 1):
        assert abs((base * normal(1 << 16, key).double()).mean()) < 4 / 256

"""Exact splitting and strided expansion."""

from fractions import Fraction

import pytest
import torch

from mupscale_cli.expand import split_exactly

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_shares", [2, 3, 5, 6, 7, 12])
def test_split_exactly_adds_up_to_the_source_in_exact_arithmetic(dtype, num_shares):
    generator = torch.Generator().manual_seed(num_shares)
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    info = torch.iinfo(bits)
    values = torch.randint(info.min, info.max, (2000,), generator=generator, dtype=bits).view(dtype)
    values = values[torch.isfinite(values)]
    shares = split_exactly(values, num_shares)
    parts = torch.stack([shares.share(index) for index in range(num_shares)])
    for value, column in zip(values.double().tolist(), parts.double().T.tolist(), strict=True):
        assert sum(map(Fraction, column)) == Fraction(value)

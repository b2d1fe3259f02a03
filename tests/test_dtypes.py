"""The table of data types agrees with torch and safetensors."""

import pytest
import torch
from safetensors.torch import save

from mupscale_cli.dtypes import DTYPES, dtype_of


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_a_data_type_agrees_with_torch_and_safetensors(dtype):
    assert dtype_of(dtype.torch) is dtype
    assert dtype.size == dtype.torch.itemsize
    assert f'"dtype":"{dtype.name}"'.encode() in save({"x": torch.empty(1, dtype=dtype.torch)})
    if dtype.kind == "float":
        assert 2 * dtype.unit_roundoff == torch.finfo(dtype.torch).eps
    else:
        assert dtype.unit_roundoff == 0


def test_an_unsupported_torch_type_is_an_error():
    with pytest.raises(KeyError, match="complex64"):
        dtype_of(torch.complex64)

"""The table of data types, against torch and safetensors."""

import pytest
import torch
from safetensors.torch import save

from mupscale_cli.dtypes import DTYPES, dtype_of


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_a_data_type_is_what_torch_and_safetensors_say(dtype):
    assert dtype_of(dtype.torch) is dtype
    assert dtype.size == dtype.torch.itemsize
    assert f'"dtype":"{dtype.name}"'.encode() in save({"x": torch.empty(1, dtype=dtype.torch)})
    if dtype.kind == "float":
        assert 2 * dtype.unit_roundoff == torch.finfo(dtype.torch).eps
    else:
        assert dtype.unit_roundoff == 0


def test_torch_has_types_that_no_header_names():
    with pytest.raises(KeyError, match="complex64"):
        dtype_of(torch.complex64)

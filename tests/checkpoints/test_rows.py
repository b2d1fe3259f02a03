"""Reading rows of tensors from their files."""

import pytest
import torch
from safetensors.torch import save_file

from mupscale_cli.checkpoints.header import read_header
from mupscale_cli.checkpoints.rows import RowReader
from mupscale_cli.errors import CheckpointError


def test_rows_match_the_tensors_that_the_library_saved(tmp_path):
    tensors = {"a": torch.randn(3, 2), "b": torch.tensor(1.5), "c": torch.zeros(0, 4), "d": torch.ones(2).bool()}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    header = read_header(tmp_path / "x.safetensors")
    assert {stored.spec.name for stored in header.tensors} == tensors.keys()
    with RowReader() as reader:
        for stored in header.tensors:
            buffer = bytearray(stored.spec.num_bytes)
            reader.read(stored, 0, memoryview(buffer))
            expected = tensors[stored.spec.name]
            assert stored.spec.shape == tuple(expected.shape)
            assert bytes(buffer) == expected.numpy().tobytes()


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path):
    file = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(100)}, file)
    (stored,) = read_header(file).tensors
    file.write_bytes(file.read_bytes()[:-50])
    with RowReader() as reader, pytest.raises(CheckpointError, match="changed while it was read"):
        reader.read(stored, 0, memoryview(bytearray(400)))

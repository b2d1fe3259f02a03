"""Writing safetensors files in pieces."""

import pytest
import torch
from safetensors.torch import load_file

from mupscale_cli.checkpoints.writing import ShardWriter
from mupscale_cli.dtypes import TensorSpec
from mupscale_cli.errors import OutputError


def test_a_shard_must_have_its_planned_size(tmp_path):
    specs = (TensorSpec("a", "F32", (2,)),)
    with pytest.raises(OutputError, match="bytes, expected"), ShardWriter(tmp_path / "x", specs, {}) as writer:
        writer.write("a", 0, (memoryview(b"1234"),))
    with ShardWriter(tmp_path / "y.safetensors", specs, {"format": "pt"}) as writer:
        writer.write("a", 4, (memoryview(torch.tensor([2.0]).numpy()).cast("B"),))
        writer.write("a", 0, (memoryview(torch.tensor([1.0]).numpy()).cast("B"),))
    assert load_file(tmp_path / "y.safetensors")["a"].tolist() == [1.0, 2.0]

"""Reading tensors of distributed checkpoints from their chunks."""

import itertools
import math
import random
from dataclasses import replace

import pytest
import torch

from mupscale_cli.checkpoints.containers.chunks import Chunk, ChunkedTensor
from mupscale_cli.checkpoints.rows import RowReader
from mupscale_cli.dtypes import TensorSpec
from mupscale_cli.errors import CheckpointError


def boxes(shape, cuts):
    """Yield the corner and the shape of every box between the cuts of each dimension."""
    sides = [list(itertools.pairwise((0, *cut, size))) for cut, size in zip(cuts, shape, strict=True)]
    for sides_of_box in itertools.product(*sides):
        yield tuple(low for low, _ in sides_of_box), tuple(high - low for low, high in sides_of_box)


@pytest.mark.parametrize(
    ("shape", "cuts"),
    [
        ((), ()),
        ((7,), ((2, 5),)),
        ((8, 5), ((3, 4), ())),  # the chunks of FSDP
        ((8, 5), ((), (2,))),  # the chunks of column-wise tensor parallelism
        ((8, 5), ((4,), (1, 3))),
        ((4, 6, 5), ((1,), (2, 4), ())),
        ((4, 3, 5), ((), (), (2,))),
        ((4, 3, 5), ((2,), (1,), (1, 4))),
    ],
)
def test_rows_are_read_from_chunks_of_any_shape(shape, cuts, tmp_path):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    data = bytes(tensor.reshape(-1).view(torch.uint8).numpy())
    chunks = []
    with open(tmp_path / "all.distcp", "wb") as stream:
        for corner, sizes in boxes(shape, cuts):
            part = tensor[tuple(slice(low, low + size) for low, size in zip(corner, sizes, strict=True))]
            start = stream.tell()
            torch.save(part.clone().contiguous(), stream)
            spec = TensorSpec("x", "BF16", sizes)
            chunks.append(Chunk(spec, corner, tmp_path / "all.distcp", start, stream.tell() - start))
    random.Random(0).shuffle(chunks)
    stored = ChunkedTensor(TensorSpec("x", "BF16", shape), "x", tuple(chunks))
    row = 2 * math.prod(shape[1:])
    with RowReader() as reader:
        for low, high in itertools.combinations(range(0, len(data) + 1, row), 2):
            actual = memoryview(bytearray(high - low))
            reader.read(stored, low, actual)
            assert actual == data[low:high]
        if len(chunks) > 1:
            for wrong in (chunks[1:], [*chunks, chunks[0]]):
                broken = ChunkedTensor(stored.spec, "x", tuple(wrong))
                with pytest.raises(CheckpointError, match="missing or overlap"):
                    reader.read(broken, 0, memoryview(bytearray(len(data))))
        lying = replace(chunks[0], spec=replace(chunks[0].spec, dtype="F16"))
        with pytest.raises(CheckpointError, match="its content contradicts the metadata"):
            reader.read(
                ChunkedTensor(replace(stored.spec, dtype="F16"), "x", (lying, *chunks[1:])),
                0,
                memoryview(bytearray(len(data))),
            )

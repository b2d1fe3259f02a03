"""Digests of files: whole, as `xxhsum` prints them, and by segments that are hashed while they are written."""

import itertools
import random

import pytest
import torch
from safetensors.torch import save_file
from xxhash import xxh3_128_digest, xxh3_128_hexdigest

from mupscale_cli.checkpoints.digests import SEGMENT_BYTES, file_digest, files_digest, segments_digest
from mupscale_cli.checkpoints.header import METADATA_KEY, replace_metadata
from mupscale_cli.checkpoints.placed import PlacedFile
from mupscale_cli.checkpoints.writing import ShardWriter
from mupscale_cli.dtypes import TensorSpec
from mupscale_cli.errors import CheckpointError, OutputError

SIZES = [0, 1, SEGMENT_BYTES - 1, SEGMENT_BYTES, 3 * SEGMENT_BYTES + 17]


def by_hand(data):
    """Compute the digest as the page `formats` describes it."""
    starts = range(0, len(data), SEGMENT_BYTES)
    return xxh3_128_hexdigest(b"".join(xxh3_128_digest(data[start : start + SEGMENT_BYTES]) for start in starts))


@pytest.mark.parametrize("size", SIZES)
def test_file_and_segments_digest_match_xxhash(size, tmp_path):
    data, counts = random.Random(size).randbytes(size), []
    (tmp_path / "x").write_bytes(data)
    assert file_digest(tmp_path / "x", counts.append) == xxh3_128_hexdigest(data)
    assert sum(counts) == size
    assert segments_digest(tmp_path / "x") == by_hand(data)
    with pytest.raises(CheckpointError, match="cannot read"):
        file_digest(tmp_path / "y")
    with pytest.raises(CheckpointError, match="cannot read"):
        segments_digest(tmp_path / "y")


def test_file_digest_of_an_empty_file_is_pinned(tmp_path):
    """XXH3-128 without a seed, high half first."""
    (tmp_path / "x").write_bytes(b"")
    assert file_digest(tmp_path / "x") == "99aa06d3014798d86001c324468d497f"


@pytest.mark.parametrize("seed", range(10))
def test_segments_are_hashed_while_they_are_written(seed, tmp_path):
    """Pieces arrive in any order and may repeat; two writers share the segment at their border."""
    moments = random.Random(seed)
    row = moments.randbytes(moments.choice([100, 20_000, SEGMENT_BYTES]))
    parts = [
        row * (1 + 2 * SEGMENT_BYTES // len(row)),
        moments.randbytes(5 * SEGMENT_BYTES // 2),
        moments.randbytes(99),
    ]
    data, known = b"".join(parts), {}
    cut = moments.randrange(len(data))
    for low, high in ((0, cut), (cut, len(data))):
        cuts = sorted({low, high, *(moments.randrange(low, high) for _ in range(6) if high > low)})
        stretches = list(itertools.pairwise(cuts))
        moments.shuffle(stretches)
        with PlacedFile(tmp_path / "x", "shared") as file:
            for start, end in stretches:
                middle = (start + end) // 2
                file.write(start, [memoryview(data)[start:middle], memoryview(data)[middle:end]])
            file.sync()
        assert file.num_bytes == high - low
        known |= file.segments
    assert (tmp_path / "x").read_bytes() == data
    assert len(known) >= 2
    assert segments_digest(tmp_path / "x", known) == by_hand(data)
    number = moments.choice(sorted(known))
    assert segments_digest(tmp_path / "x", {**known, number: bytes(16)}) != by_hand(data)  # known ones are not read


def test_any_changed_bit_changes_the_digest(tmp_path):
    save_file({"a": torch.zeros(40, 3), "b": torch.zeros(2, 600)}, tmp_path / "x.safetensors")
    data, digests = (tmp_path / "x.safetensors").read_bytes(), set()
    for place in range(8, len(data), 97):
        changed = bytearray(data)
        changed[place] ^= 1
        (tmp_path / "y").write_bytes(changed)
        digests.add(segments_digest(tmp_path / "y"))
    assert len(digests) == len(range(8, len(data), 97))
    assert segments_digest(tmp_path / "x.safetensors") not in digests


def test_the_record_in_a_header_is_not_hashed(tmp_path):
    file, spec = tmp_path / "x.safetensors", TensorSpec("a", "F32", (SEGMENT_BYTES,))
    data = random.Random(0).randbytes(spec.num_bytes)
    with ShardWriter(file, (spec,), {"format": "pt", METADATA_KEY: "{}"}, reserve=500) as writer:
        writer.write("a", 0, (memoryview(data),))
    digest = writer.finish([writer.written])
    assert digest == segments_digest(file)
    replace_metadata(file, {"format": "pt", METADATA_KEY: '{"digest": 1}'})
    assert digest == segments_digest(file)
    replace_metadata(file, {"format": "np", METADATA_KEY: "{}"})
    assert digest != segments_digest(file)
    replace_metadata(file, {"format": "pt", METADATA_KEY: "{}"})
    for place in (-1, -spec.num_bytes):
        changed = bytearray(file.read_bytes())
        changed[place] ^= 1
        (tmp_path / "y.safetensors").write_bytes(changed)
        assert digest != segments_digest(tmp_path / "y.safetensors")


def test_an_incomplete_file_is_refused(tmp_path):
    spec = TensorSpec("a", "F32", (4,))
    with ShardWriter(tmp_path / "x.safetensors", (spec,), {}) as writer:
        writer.write("a", 8, (memoryview(bytes(8)),))  # the size is right
    with pytest.raises(OutputError, match="is incomplete"):
        writer.finish([writer.written])


def test_files_digest_sorts_files_by_name(tmp_path):
    for name in "ba":
        (tmp_path / name).write_text(name)
    a, b = tmp_path / "a", tmp_path / "b"
    assert files_digest([a]) == file_digest(a)
    assert (
        files_digest([b, a])
        == files_digest([a, b])
        == xxh3_128_hexdigest(xxh3_128_digest(b"a") + xxh3_128_digest(b"b"))
    )
    assert files_digest([a, b]) != files_digest([a, b], segments_digest)

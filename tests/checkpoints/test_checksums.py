"""Checksums of data whose pieces arrive in any order."""

import itertools
import random
import zlib

from mupscale_cli.checkpoints.containers.checksums import Checksum


def test_pieces_in_any_order_have_the_checksum_of_the_whole():
    generator = random.Random(0)
    data = memoryview(generator.randbytes(100_000))
    for count in (0, 1, 2, 300):
        cuts = [0, *sorted(generator.sample(range(1, len(data)), count)), len(data)]
        stretches = list(itertools.pairwise(cuts))
        generator.shuffle(stretches)
        parts = [Checksum(), Checksum()]
        for low, high in stretches:
            middle = (low + high) // 2
            parts[generator.randrange(2)].add(low, [data[low:middle], data[middle:high]])
        whole = Checksum()
        assert whole.value(len(data)) is None
        for part in parts:
            whole.merge(part.stretches)
        assert whole.stretches == {0: (len(data), zlib.crc32(data))}
        assert whole.value(len(data)) == zlib.crc32(data)
        assert whole.value(len(data) + 1) is None

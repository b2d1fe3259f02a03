"""A plan turned into bytes: expand, split, noise, blocks, streaming; threads, processes, ranks."""

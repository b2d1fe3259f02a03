"""Checkpoints on disk: reading headers and rows, writing shards, publishing finished outputs."""

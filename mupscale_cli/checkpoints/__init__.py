"""Checkpoints on disk: what their headers say, reading rows, writing whole files at once."""

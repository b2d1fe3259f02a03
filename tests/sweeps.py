"""Helpers for the tests of sweeps."""

from __future__ import annotations

from cli_runner import Result, run

VOCAB = 50
SHORT = ("--steps", "3", "--batch-size", "2", "--length", "8")
OWN = ("--command", "train {checkpoint} {lr}")
words = str.split  # splits a command line whose words have no spaces


def sweep(*arguments: object) -> Result:
    """Run `mupscale sweep` and check that it succeeds."""
    result = run("sweep", *map(str, arguments))
    assert result.code == 0, result.err
    return result

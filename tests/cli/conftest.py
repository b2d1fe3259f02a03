"""Fixtures for tests of commands."""

import pytest

from cli_runner import run


@pytest.fixture(scope="session")
def widened(saved, tmp_path_factory):
    """Return the folder of a checkpoint that `mupscale widen` wrote."""
    folder = tmp_path_factory.mktemp("widened")
    assert run("widen", str(saved("Qwen3-tied")), "--factor", "2", "-o", str(folder / "wide")).code == 0
    return folder / "wide"

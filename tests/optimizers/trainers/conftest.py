"""A widened checkpoint that several test files share."""

import pytest

from mupscale_cli.tasks.widen import widen


@pytest.fixture(scope="session")
def wide(saved, tmp_path_factory):
    output = tmp_path_factory.mktemp("hparams") / "wide"
    return widen(saved("Qwen3-tied"), output, 4, verify=False)

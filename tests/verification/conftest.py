"""A user-defined model."""

import pytest

from helpers import MLP_MODULE, save_mlp


@pytest.fixture
def mlp(tmp_path):
    """A perceptron in a single file without a config, and the value of `--model` that builds it."""
    (tmp_path / "net.py").write_text(MLP_MODULE)
    return save_mlp(tmp_path / "mlp.safetensors"), f"{tmp_path / 'net.py'}:build"

"""A model of the user's own."""

import pytest

from helpers import MLP_MODULE, save_mlp


@pytest.fixture
def mlp(tmp_path):
    """A perceptron without config in one file, and the option that builds it."""
    (tmp_path / "net.py").write_text(MLP_MODULE)
    return save_mlp(tmp_path / "mlp.safetensors"), f"{tmp_path / 'net.py'}:build"

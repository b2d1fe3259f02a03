"""Checkpoints that many tests read and none changes."""

from functools import cache

import pytest

from helpers import save_model


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """Directories of random models by the name of their case, saved once."""

    @cache
    def save(case="Llama-untied", **changes):
        return save_model(tmp_path_factory.mktemp(case) / "narrow", case, **changes)

    return save

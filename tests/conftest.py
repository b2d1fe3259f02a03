"""Checkpoints that many tests read and none changes."""

from functools import cache

import pytest
from hypothesis import settings

from helpers import save_model

# A busy machine is no reason to fail.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """Directories of random models by the name of their case, saved once."""

    @cache
    def save(case="Llama-untied", **changes):
        return save_model(tmp_path_factory.mktemp(case) / "narrow", case, **changes)

    return save

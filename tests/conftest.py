"""Checkpoints that many tests read and none changes."""

import gc
from functools import cache

import pytest
import torch
from hypothesis import settings

from helpers import save_model

torch.set_num_threads(1)  # the models are tiny, and there is one process a core
# A busy machine is no reason to fail.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def _frozen():
    """Every verification collects garbage; what transformers leaves at import would be visited each time."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """Directories of random models by the name of their case, saved once."""

    @cache
    def save(case="Llama-untied", **changes):
        return save_model(tmp_path_factory.mktemp(case) / "narrow", case, **changes)

    return save

"""Fixtures shared by all tests: narrow checkpoints, which no test changes, and a Hub."""

import gc
import os
import signal
from functools import cache

import pytest
import torch
from huggingface_hub import HfFileSystem, constants, utils
from huggingface_hub.utils import _http
from hypothesis import settings

from helpers import save_model
from hub_server import TOKEN, HubServer
from small_models.multimodal import REQUIRES

os.environ.pop("COLUMNS", None)  # set by the terminal of xdist; tests have no terminal
# A shell makes background programs ignore SIGINT, and children inherit that; some tests interrupt children.
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # the models are tiny, and each core has its own process
# Do not fail on a busy machine.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def _frozen():
    """Exempt the objects of transformers from garbage collection, which every verification triggers."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """Return a function that saves a random model once and returns its directory."""

    @cache
    def save(case="Llama-untied", **changes):
        if case in REQUIRES:
            pytest.importorskip(REQUIRES[case], exc_type=ImportError)
        return save_model(tmp_path_factory.mktemp(case) / "narrow", case, **changes)

    return save


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A local Hub for the real client, with an empty cache, a token and an empty current folder.

    The client reads its environment at import, which has already happened, so this sets its constants.
    """
    server = HubServer()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # xet has its own protocol
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr(_http.time, "sleep", lambda _seconds: None)  # skip the client's pauses between retries
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.chdir(tmp_path)
    HfFileSystem.clear_instance_cache()
    utils.close_session()
    yield server
    utils.close_session()
    server.close()

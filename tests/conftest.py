"""Checkpoints that many tests read and none changes."""

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

os.environ.pop("COLUMNS", None)  # of the terminal that xdist was started in; tests have none
# A program that a shell runs in the background is born deaf to it, and so are the children that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
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


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub on this machine that the real client talks to, with an empty cache and a token; in an empty folder.

    The client reads its environment when it is imported, which others have done by now, so its constants are set.
    """
    server = HubServer()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # which speaks a protocol of its own
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr(_http.time, "sleep", lambda _seconds: None)  # between the client's own retries
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.chdir(tmp_path)
    HfFileSystem.clear_instance_cache()
    utils.close_session()
    yield server
    utils.close_session()
    server.close()

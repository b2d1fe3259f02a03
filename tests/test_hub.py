"""Checkpoints on the Hub, without a network: what the client answers becomes a checkpoint or a message."""

import json
import shutil
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from cli_runner import run
from mupscale_cli.hub import HubId, parse_hub_id


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", HubId("org/name", None)),
        ("hf://org/name", HubId("org/name", None)),
        ("org/name-1.5b@main", HubId("org/name-1.5b", "main")),
        ("org/name@refs/pr/3", HubId("org/name", "refs/pr/3")),
        ("name", None),
        ("/org/name", None),
        ("./org/name", None),
        ("a/b/c", None),
        ("org/name.safetensors@", None),
    ],
)
def test_hub_ids(text, expected):
    assert parse_hub_id(text) == expected


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Replaces the client's download; returns what it was asked for."""
    asked = []

    def use(answer):
        def snapshot_download(repo, *, revision=None, allow_patterns=None):
            asked.append((repo, revision, allow_patterns))
            if isinstance(answer, Exception):
                raise answer
            return str(answer)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        monkeypatch.chdir(tmp_path)
        return asked

    return use


def test_a_model_of_the_hub_is_widened_into_the_current_folder(hub, saved, tmp_path):
    commit = shutil.copytree(saved("Llama-tied"), tmp_path / "cache" / "0123abc")
    asked = hub(commit)
    assert run("widen", "org/tiny@v1", "--factor", "2").code == 0
    ((repo, revision, patterns),) = asked
    assert (repo, revision) == ("org/tiny", "v1")
    assert "*.safetensors" in patterns
    assert not any("bin" in pattern for pattern in patterns)
    record = json.loads((tmp_path / "tiny-x2" / "mupscale.json").read_text())
    assert {key: record["source"][key] for key in ("repo", "revision")} == {"repo": "org/tiny", "revision": "0123abc"}
    assert str(tmp_path) not in json.dumps(record)
    # And the source is found again by repository and commit.
    assert run("verify", "tiny-x2").code == 0
    assert asked[-1][:2] == ("org/tiny", "0123abc")


RESPONSE = SimpleNamespace(headers={}, status_code=404, request=None, url="u", text="")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RepositoryNotFoundError("x", response=RESPONSE), ["neither a file nor a folder", "org/tiny", "hf auth login"]),
        (GatedRepoError("x", response=RESPONSE), ["gated", "HF_TOKEN"]),
        (RevisionNotFoundError("x", response=RESPONSE), ["no revision `v9`"]),
        (LocalEntryNotFoundError("x"), ["cannot be reached", "HF_HUB_OFFLINE"]),
        (HfHubHTTPError("server on fire", response=RESPONSE), ["cannot download", "server on fire"]),
        (OSError("disk full"), ["cannot download", "disk full"]),
    ],
)
def test_what_goes_wrong_there_is_one_message(error, says, hub, tmp_path):
    hub(error)
    result = run("widen", "org/tiny@v9", "--factor", "2")
    assert result.code == 2
    assert "Traceback" not in result.err
    for text in says:
        assert text in result.err
    assert list(tmp_path.iterdir()) == []

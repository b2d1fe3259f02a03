"""Checkpoints on the Hub with the real client: reading headers, downloading, and errors."""

import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants, utils
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from cli_runner import run
from helpers import build, save_mlp, save_model
from hub_server import TOKEN, Blob, HubServer, _Handler
from mupscale_cli.checkpoints.hub import reading
from mupscale_cli.checkpoints.hub.failures import hub_error, hub_errors
from mupscale_cli.checkpoints.hub.ids import HubId, parse_hub_id
from mupscale_cli.optimizers.options import StateOptions
from mupscale_cli.optimizers.torch_groups import param_groups
from mupscale_cli.tasks.source import find_source
from mupscale_cli.tasks.widen import widen


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", HubId("org/name", None)),
        ("hf://org/name", HubId("org/name", None)),
        ("hf://org/name@v1", HubId("org/name", "v1")),
        ("https://huggingface.co/org/name", HubId("org/name", None)),
        ("https://huggingface.co/org/name/tree/refs/pr/1/", HubId("org/name", "refs/pr/1")),
        ("https://example.org/org/name", None),
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


def content(folder):
    """Return the files of a folder by name."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_dry_run_reads_headers_and_widening_downloads_only_needed_files(hub, saved, tmp_path):
    extra = {
        "pytorch_model.bin": b"p" * 999,
        "model.gguf": b"g" * 999,
        "flax_model.msgpack": b"f" * 999,
        "consolidated.safetensors": b"c" * 999,
        "onnx/model.onnx": b"o" * 999,
        "tokenizer.json": b"{}",
        "README.md": b"# card",
    }
    commit = hub.add("org/tiny", {**content(saved("Llama-tied")), **extra})
    planned = run("widen", "hf://org/tiny@main", "--factor", "2", "--dry-run")
    assert planned.code == 0, planned.err
    assert "23.9 k -> 89.2 k parameters" in planned.out
    assert "download: 98.8 kB" in planned.out
    cached = tmp_path / "cache" / "models--org--tiny" / "snapshots" / commit
    assert {file.name for file in cached.iterdir()} == {"config.json", "generation_config.json"}
    result = run("widen", "org/tiny", "--factor", "2")
    assert result.code == 0, result.err
    assert "downloading org/tiny (" in result.err
    wanted = {"config.json", "generation_config.json", "tokenizer.json", "model.safetensors"}
    assert {file.name for file in cached.iterdir()} == wanted
    wide = tmp_path / "tiny-x2"
    files = json.loads((wide / "mupscale.json").read_text())["source"]["files"]
    stated = hashlib.sha256((cached / "model.safetensors").read_bytes()).hexdigest()
    assert {name: file.get("sha256") for name, file in files.items()} == {
        "model.safetensors": stated,
        "config.json": None,
        "generation_config.json": None,
        "tokenizer.json": None,
    }
    assert (wide / "tokenizer.json").is_file()
    record = json.loads((wide / "mupscale.json").read_text())
    assert {key: record["source"][key] for key in ("repo", "revision")} == {"repo": "org/tiny", "revision": commit}
    assert str(tmp_path) not in json.dumps(record)
    # `verify` finds the source in the cache by repository and commit.
    hub.forget()
    assert run("verify", "tiny-x2").code == 0
    assert not hub.asked("GET .*resolve")


def test_modules_in_folders_are_read_from_the_hub(hub, saved, tmp_path):
    """The headers of modules are read, and their files downloaded, like those of the model."""
    config = json.loads((saved("Bert-tied") / "config.json").read_text())
    size = config["hidden_size"]
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    save_file({"linear.weight": torch.ones(3, size)}, tmp_path / "dense")
    hub.add(
        "org/texts",
        {
            **content(saved("Bert-tied")),
            "modules.json": json.dumps(modules).encode(),
            "1_Pooling/config.json": json.dumps({"embedding_dimension": size}).encode(),
            "2_Dense/config.json": json.dumps({"in_features": size, "out_features": 3}).encode(),
            "2_Dense/model.safetensors": (tmp_path / "dense").read_bytes(),
        },
    )
    planned = run("widen", "org/texts", "--factor", "2", "--dry-run")
    assert planned.code == 0, planned.err
    result = run("widen", "org/texts", "--factor", "2", "--no-verify")
    assert result.code == 0, result.err
    wide = tmp_path / "texts-x2"
    assert json.loads((wide / "1_Pooling" / "config.json").read_text()) == {"embedding_dimension": 2 * size}
    torch.testing.assert_close(
        load_file(wide / "2_Dense" / "model.safetensors")["linear.weight"], torch.full((3, 2 * size), 0.5)
    )
    assert run("verify", "texts-x2", "--only", "weights", "--only", "files").code == 0


def large_model(num_shards, rows):
    """Return headers and index of shards that declare `rows` x 4096 floats each, and the declared file sizes."""
    files, sizes, weight_map = {}, {}, {}
    for shard in range(num_shards):
        name = f"model-{shard + 1:05d}-of-{num_shards:05d}.safetensors"
        tensor = f"layer.{shard}.weight"
        length = rows * 4096 * 4
        # The last header is longer than the first request.
        metadata = {"__metadata__": {"note": "x" * 300_000}} if shard == num_shards - 1 else {}
        entry = {**metadata, tensor: {"dtype": "F32", "shape": [rows, 4096], "data_offsets": [0, length]}}
        text = json.dumps(entry).encode()
        files[name] = struct.pack("<Q", len(text)) + text
        sizes[name] = len(files[name]) + length
        weight_map[tensor] = name
    files["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    return files, sizes


RECIPE = """
about: layers
axes: {width: {size: from shapes, about: the width}}
widen: [width]
tensors: {"layer.*.weight": "width, ."}
"""


MLP_TENSORS = '"0.weight": "width, .", "0.bias": width, "2.weight": "., /width", "2.bias": ., "4.*": keep'


def test_the_plan_of_a_model_of_hundreds_of_gigabytes_reads_only_headers(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**13))
    files, sizes = large_model(30, 1_000_000)
    assert sum(sizes.values()) > 4.9e11
    commit = hub.add("org/huge", files, sizes)
    (tmp_path / "layers.yaml").write_text(RECIPE)
    result = run("widen", "org/huge", "-f", "2", "--recipe", "layers.yaml", "--dry-run", "--json")
    assert result.code == 0, result.err
    plan = json.loads(result.out)
    assert plan["parameters"] == {"before": 30 * 1_000_000 * 4096, "after": 60 * 1_000_000 * 4096}
    assert hub.bytes_sent < 30 * (1 << 16) + 500_000, hub.bytes_sent
    assert len(hub.asked("GET .*-of-00030.safetensors")) <= 32
    hub.forget()
    assert run("inspect", f"org/huge@{commit}", "--recipe", "layers.yaml").code == 0
    assert hub.bytes_sent < 30 * (1 << 16) + 500_000


def test_a_model_without_any_json(hub, tmp_path):
    weights = save_mlp(tmp_path / "mlp.safetensors")
    hub.add("org/mlp", {"weights.safetensors": weights.read_bytes()})
    (tmp_path / "layers.yaml").write_text(RECIPE.replace('"layer.*.weight": "width, ."', MLP_TENSORS))
    arguments = ("widen", "org/mlp", "-f", "2", "--recipe", "layers.yaml", "--no-verify")
    assert run(*arguments, "--dry-run").code == 0
    assert "recipe mlp" in run("inspect", "org/mlp").out
    result = run(*arguments)
    assert result.code == 0, result.err
    assert (tmp_path / "mlp-x2" / "model.safetensors").is_file()


def test_recipes_commands_read_only_headers(hub, saved):
    hub.add("org/tiny", content(saved("Llama-tied")))
    assert run("recipes", "show", "llama", "org/tiny").code == 0
    checked = run("recipes", "check", "llama", "org/tiny")
    assert checked.code == 0, checked.err
    assert "34 tensors" in checked.out
    assert len(hub.asked("GET .*model.safetensors")) == 2


def test_headers_on_the_hub_are_checked_like_local_ones(hub, saved):
    files = content(saved("Llama-tied"))
    hub.add("org/short", {**files, "model.safetensors": files["model.safetensors"][:-4]})
    result = run("inspect", "org/short")
    assert result.code == 2
    assert "`org/short`" in result.err
    assert "its tensors end at byte" in result.err
    assert "cache" not in result.err
    hub.add("org/pickle", {"config.json": b"{}", "pytorch_model.bin": b"x"})
    told = run("inspect", "org/pickle").out
    assert "not safetensors" in told
    assert told.count("`org/pickle`") == 1
    assert "`hf download org/pickle --local-dir OUT`" in told
    hub.add("org/lost", {key: value for key, value in large_model(3, 2)[0].items() if "00002-of" not in key})
    assert "1 of 3 shards are missing" in run("inspect", "org/lost").err


def test_the_optimizer_state_is_downloaded_when_it_is_widened(hub, saved):
    names = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")
    hub.add("org/run", {**content(saved("Llama-tied")), **dict.fromkeys(names, b"x")})
    source = find_source("org/run", headers_only=True)
    assert source.find_state(StateOptions()) == "org/run/optimizer.pt"
    assert source.find_state(StateOptions("none")) is None
    fetched = source.fetched(StateOptions()).checkpoint.path
    assert all((fetched / name).is_file() for name in names)
    assert find_source("org/run", with_state=True).checkpoint.path == fetched


def test_dry_runs_count_the_state_and_the_download(hub, saved, tmp_path):
    state = 10**6
    hub.add("org/run", {**content(saved("Llama-tied")), "optimizer.pt": b"x"}, sizes={"optimizer.pt": state})
    size = sum(map(len, content(saved("Llama-tied")).values())) + state

    def planned(*words):
        return json.loads(run(*words, "--dry-run", "--json").out)

    plan = planned("widen", "org/run", "-f", "2", "-o", str(tmp_path / "wide"))
    wide_state = state * plan["parameters"]["after"] // plan["parameters"]["before"]
    total = sum(disk["needed"] for disk in plan["disks"])
    assert plan["bytes"] + wide_state < total <= plan["bytes"] + wide_state + size
    without = planned("widen", "org/run", "-f", "2", "-o", str(tmp_path / "wide"), "--optimizer", "none")
    assert sum(disk["needed"] for disk in without["disks"]) < total - wide_state
    (tmp_path / "job.yaml").write_text(
        "steps:\n" + "".join(f"  - widen: org/run\n    factor: 2\n    output: wide{n}\n" for n in range(2))
    )
    job = planned("run", str(tmp_path / "job.yaml"))
    assert job["download_bytes"] == total - plan["bytes"] - wide_state  # once for both steps
    assert sum(disk["needed"] for disk in job["disks"]) == 2 * (plan["bytes"] + wide_state) + job["download_bytes"]


def test_subfolders_are_planned_from_the_listing_and_only_carried_ones_downloaded(hub, saved, tmp_path):
    template, model = "additional_chat_templates/rag.jinja", "onnx/model.onnx"
    hub.add("org/tiny", {**content(saved("Llama-tied")), template: b"x", model: b"x" * 100})
    planned = run("widen", "org/tiny", "--factor", "2", "--dry-run").out
    assert "additional_chat_templates/" in planned
    assert "onnx/" in planned
    record = widen("org/tiny", tmp_path / "wide", 2, verify=False).record
    assert (tmp_path / "wide" / template).read_bytes() == b"x"
    assert record["fates"]["onnx/"]["fate"] == "left behind"
    assert not hub.asked(f"GET .*{model}")
    assert run("verify", str(tmp_path / "wide"), "--only", "files").code == 0


# Errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (("GET /api/models", 401), ["not logged in to the Hub", "hf auth login"]),
        (("GET /api/models", 403), ["HTTP 403", "needs read access"]),
        (("GET /api/models", 404), ["HTTP 404", "org/tiny", "check the name"]),
        (("GET /api/models", 429), ["too many requests", "HTTP 429", "wait"]),
        (("GET /api/models", 500), ["HTTP 500", "try again"]),
        (("GET .*/resolve/.*model.safetensors", 403), ["HTTP 403"]),
        (("GET .*/resolve/.*model.safetensors", 404), ["HTTP 404"]),
        (("GET .*/resolve/.*model.safetensors", 503), ["HTTP 503", "try again"]),
    ],
)
def test_hub_errors_are_one_message(failure, expected, hub, saved, tmp_path):
    hub.add("org/tiny", content(saved("Llama-tied")))
    hub.fail(*failure)
    result = run("widen", "org/tiny", "--factor", "2")
    assert result.code == 2
    assert "Traceback" not in result.err
    for text in ("error:", "hint:", *expected):
        assert text in result.err, result.err
    assert TOKEN not in result.err + result.out
    assert not (tmp_path / "tiny-x2").exists()


def test_a_file_that_vanishes_meanwhile_is_an_error(hub, saved):
    hub.add("org/tiny", content(saved("Llama-tied")))
    hub.fail("GET .*/resolve/.*model.safetensors", 404, X_Error_Code="EntryNotFound")
    assert "may have changed" in run("inspect", "org/tiny").err


def test_the_client_retries_when_the_hub_is_busy(hub, saved):
    hub.add("org/tiny", content(saved("Llama-tied")))
    hub.fail("GET .*/resolve/.*model.safetensors", 429, times=1)
    hub.fail("GET .*/resolve/.*model.safetensors", 503, times=1, Retry_After="1")
    result = run("inspect", "org/tiny")
    assert result.code == 0, result.err
    assert len(hub.asked("GET .*/resolve/.*model.safetensors")) == 3


def test_missing_private_and_gated_models_have_their_own_messages(hub, saved, monkeypatch):
    files = content(saved("Llama-tied"))
    hub.add("org/tiny", files)
    hub.add("org/secret", files, private=True)
    hub.add("org/gated", files, gated=True)
    assert "has no revision `v9`" in run("inspect", "org/tiny@v9").err
    missing = run("inspect", "org/nothing").err
    assert "no file or folder has this name, and the model does not exist" in missing
    assert run("inspect", "org/secret").code == 0
    assert run("inspect", "org/gated").code == 0
    monkeypatch.delenv("HF_TOKEN")
    # A cached model stays readable, so the cache has to be removed to see the error.
    shutil.rmtree(constants.HF_HUB_CACHE)
    missing = run("inspect", "org/secret")
    assert missing.code == 2
    assert "for a private model" in missing.err
    gated = run("inspect", "org/gated")
    assert gated.code == 2
    assert "`org/gated` is gated" in gated.err
    assert "request access" in gated.err


def test_offline_mode_and_lost_connections_use_the_cache(hub, saved, tmp_path, monkeypatch):
    hub.add("org/tiny", content(saved("Llama-tied")))
    hub.add("org/partly", content(saved("Llama-tied")))
    find_source("org/tiny")
    run("inspect", "org/partly")
    hub.close()
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 1)
    for setting in (False, True):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", setting)
        utils.close_session()
        assert run("inspect", "org/tiny").code == 0
        partly = run("inspect", "org/partly")
        assert partly.code == 2
        assert "in the cache" in partly.err
        other = run("inspect", "org/other")
        assert other.code == 2
        assert "no such file or folder" in other.err
        assert ("HF_HUB_OFFLINE" in other.err) is setting, other.err
    utils.close_session()


def test_client_errors_without_a_response_are_reported():
    model = HubId("org/tiny", "v1")
    assert "not in the cache" in hub_error(LocalEntryNotFoundError("x"), "read", model).message
    with pytest.raises(Exception, match="cannot download `org/tiny@v1`: disk full"), hub_errors("download", model):
        raise OSError("disk full")
    with pytest.raises(Exception, match="cannot download") as caught, hub_errors("download", model):
        raise RuntimeError(f"xet: https://user:{TOKEN}@cas/ refused Bearer abc\nmore")
    assert TOKEN not in str(caught.value)
    assert "abc" not in str(caught.value)


def test_environment_variables_set_endpoint_and_cache(saved, tmp_path):
    """Runs in a new process, because the client reads these variables when it is imported."""
    hub = HubServer()
    hub.add("org/secret", content(saved("Llama-tied")), private=True)
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN}
    environment.pop("HF_HUB_CACHE", None)
    command = [sys.executable, "-c", "from mupscale_cli.cli.main import main; main()", "inspect", "org/secret"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "home" / "hub" / "models--org--secret").is_dir()
    hub.close()
    offline = {**environment, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")}
    result = subprocess.run(command, env=offline, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "HF_HUB_OFFLINE" in result.stderr
    assert "Traceback" not in result.stderr


WIDE = {"hidden_size": 96, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 80}


def test_a_published_model_can_be_read_back(hub, tmp_path):
    folder = save_model(tmp_path / "narrow", "Llama-tied")
    assert run("widen", str(folder), "-f", "2", "--no-verify", "-o", "wide").code == 0
    assert run("push", "wide", "me/wide").code == 0
    inspected = run("inspect", "me/wide")
    assert inspected.code == 0, inspected.err
    assert "widened by mupscale" in inspected.out
    assert run("hparams", "me/wide", "--lr", "1e-3").code == 0
    assert param_groups(build("Llama-tied", **WIDE), "hf://me/wide", lr=1e-3)[0]["params"]
    assert not hub.asked("GET .*/resolve/.*(optimizer|tokenizer)")


# Damaged and endless answers -----------------------------------------------------------------


def test_a_download_with_another_sha256_than_stated_is_refused(hub, saved, monkeypatch):
    hub.add("org/tiny", content(saved("Llama-tied")))
    part = Blob.part

    def damaged(blob, start, end):
        data = part(blob, start, end)
        return data[:-1] + bytes([data[-1] ^ 1]) if blob.is_large and start + len(data) == blob.size else data

    with monkeypatch.context() as patch:
        patch.setattr(Blob, "part", damaged)
        result = run("widen", "org/tiny", "--factor", "2", "--no-verify")
    assert result.code == 2
    assert "`model.safetensors` of `org/tiny` is damaged: its SHA-256 is not" in result.err
    cached = run("widen", "org/tiny", "--factor", "2", "--no-verify")  # from the cache, which is damaged
    assert cached.code == 2
    Path(re.search("remove `(.*?)`", cached.err.replace("\n", ""))[1]).unlink()
    assert run("widen", "org/tiny", "--factor", "2", "--no-verify").code == 0


@pytest.mark.parametrize("size", ["12", None, -1, 1.5, [1]])
def test_a_size_that_is_no_number_is_reported(size, hub, saved, monkeypatch):
    hub.add("org/tiny", content(saved("Llama-tied")))
    entry = _Handler._entry
    monkeypatch.setattr(_Handler, "_entry", lambda self, path, blob: {**entry(self, path, blob), "size": size})
    result = run("inspect", "org/tiny")
    assert result.code == 2
    assert "the size" in result.err
    assert "Traceback" not in result.err


def test_a_stalled_answer_ends_in_a_message(hub, saved, monkeypatch):
    hub.add("org/tiny", content(saved("Llama-tied")))
    monkeypatch.setattr(reading, "_MAX_SECONDS", 1)
    stalled = threading.Event()

    def request(_model):
        stalled.wait(20)

    monkeypatch.setattr(reading, "_file_sizes", request)
    result = run("inspect", "org/tiny")
    stalled.set()
    assert result.code == 2
    assert "did not finish its answer within 1 s" in result.err


def test_an_endless_list_of_files_is_refused(hub, saved, monkeypatch):
    hub.add("org/tiny", content(saved("Llama-tied")))
    monkeypatch.setattr(reading, "_MAX_FILES", 2)
    result = run("inspect", "org/tiny")
    assert result.code == 2
    assert "has more than 2 files" in result.err

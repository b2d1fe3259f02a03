"""`mupscale doctor` prints what a bug report needs, without secrets."""

import json
import sys
from pathlib import Path

import torch

import mupscale_cli
from cli_runner import run
from mupscale_cli.tasks.doctor import shorten_home

SECRET = "hf_aVerySecretToken"  # noqa: S105 (it stands for one)


def test_doctor_describes_this_machine():
    shown_lines = run("doctor").out.splitlines()
    found = {line.split()[0]: line for line in shown_lines}
    assert found["mupscale"].split()[1].rstrip(",") == mupscale_cli.__version__
    assert found["torch"].split()[1] == torch.__version__
    assert {"python", "system", "safetensors", "transformers", "extras", "cpu", "disk", "recipes"} <= found.keys()
    assert not any(line.endswith(" ") for line in shown_lines)


def test_doctor_prints_json():
    found = json.loads(run("doctor", "--json").out)
    assert found["schema_version"] == 1
    assert found["packages"]["torch"] == torch.__version__
    assert found["devices"][0]["name"] == "cpu"
    assert 0 < found["disk"]["free_bytes"] < found["disk"]["bytes"]
    assert found["recipes"]["count"] > 50
    assert found["extras"].items() >= {"hf": True, "plot": True, "sweep": True}.items()


def test_the_token_is_never_shown(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    for result in (run("doctor"), run("doctor", "--json")):
        assert SECRET not in result.out + result.err
        assert "set by HF_TOKEN" in result.out
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: SECRET)
    assert "saved by `hf auth login`" in run("doctor").out
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert json.loads(run("doctor", "--json").out)["hub"]["token"] is None


def test_a_password_in_the_endpoint_is_not_shown(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://me:secret@hub.example:8080/hf")
    assert json.loads(run("doctor", "--json").out)["hub"]["endpoint"] == "https://hub.example:8080/hf"


def test_paths_do_not_contain_the_name_of_the_user():
    assert shorten_home(Path.home() / "runs" / "x") == str(Path("~/runs/x"))
    assert shorten_home(Path("/data/x")) == str(Path("/data/x"))


def test_a_broken_torch_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    result = run("doctor")
    assert result.code == 0
    assert "cannot be used: ModuleNotFoundError" in result.out


def test_missing_packages_are_named_with_their_extra(monkeypatch):
    monkeypatch.setattr("mupscale_cli.tasks.doctor._is_installed", lambda name: name != "matplotlib")
    line = "extras           hf, timm, open-clip, diffusers; missing: plot, sweep (mupscale help install)"
    assert line in run("doctor").out

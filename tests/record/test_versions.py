"""Older formats are read by every command, newer ones are refused with what to do."""

import hashlib
import json
import shutil

import pytest

from cli_runner import run
from mupscale_cli.architecture.loading import load_recipe
from mupscale_cli.errors import RecipeError
from mupscale_cli.record import FORMAT_VERSION


@pytest.fixture
def first_format(saved, tmp_path, monkeypatch):
    """A folder with a narrow model and a wide one whose record is of format 1; the current one."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(saved("Llama-tied"), "narrow")
    assert run("widen", "narrow", "-f", "2", "-o", "wide").code == 0
    file = tmp_path / "wide" / "mupscale.json"
    record = json.loads(file.read_text())
    for later in ("written", "nonfinite", "overflowed"):
        record.pop(later, None)
    weights = record["source"]["files"]["model.safetensors"]
    del weights["digest"]
    weights["sha256"] = hashlib.sha256((tmp_path / "narrow" / "model.safetensors").read_bytes()).hexdigest()
    file.write_text(json.dumps({**record, "format_version": 1}))
    return tmp_path


def test_every_command_reads_a_record_of_format_1(first_format, hub):
    (first_format / "job.yaml").write_text("steps:\n  - {widen: narrow, factor: 2, output: wide}\n")
    for line in (
        "inspect wide",
        "hparams wide --lr 1e-3",
        "verify wide --dtype float32",
        "verify wide --weights",
        "push wide me/wide --dry-run",
        "recipes show llama wide",
        "run job.yaml",
    ):
        result = run(*line.split())
        assert result.code == 0, (line, result.err)
    assert "skipped" in result.out
    (first_format / "narrow" / "model.safetensors").write_bytes(b"")
    assert run("verify", "wide").code == 2


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, 0, "1", None])
def test_a_record_of_another_format_is_refused_by_every_command(version, first_format, hub):
    file = first_format / "wide" / "mupscale.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format_version": version}))
    for line in ("inspect wide", "hparams wide --lr 1e-3", "verify wide", "push wide me/wide --dry-run"):
        result = run(*line.split())
        assert result.code == 2
        assert f"has format {version!r}, this mupscale reads up to {FORMAT_VERSION}" in result.err
        assert "upgrade mupscale" in result.err


def test_recipes_have_a_version(tmp_path):
    (tmp_path / "mine.yaml").write_text("version: 1\nextends: llama\n")
    assert load_recipe(tmp_path / "mine.yaml").axis_names == load_recipe("llama").axis_names
    (tmp_path / "other.yaml").write_text("extends: mine\nabout: what follows from it\n")
    assert load_recipe(tmp_path / "other.yaml").about == "what follows from it"
    (tmp_path / "later.yaml").write_text("extends: llama\nversion: 2\n")
    with pytest.raises(RecipeError, match="this mupscale reads recipes of version 1") as caught:
        load_recipe(tmp_path / "later.yaml")
    assert "later.yaml:2" in caught.value.message
    assert caught.value.hint == "upgrade mupscale"

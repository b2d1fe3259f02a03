"""Every command refuses other format versions with a hint."""

import json

import pytest

from cli_runner import run
from mupscale_cli.architecture.loading import load_recipe
from mupscale_cli.errors import RecipeError
from mupscale_cli.record import FORMAT_VERSION


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, 0, "1", True, None])
def test_a_record_of_another_format_is_refused_by_every_command(version, saved, tmp_path, monkeypatch, hub):
    monkeypatch.chdir(tmp_path)
    assert run("widen", str(saved("Llama-tied")), "-f", "2", "-o", "wide", "--no-verify").code == 0
    file = tmp_path / "wide" / "mupscale.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format_version": version}))
    for line in ("inspect wide", "hparams wide --lr 1e-3", "verify wide", "push wide me/wide --dry-run"):
        result = run(*line.split())
        assert result.code == 2
        assert f"has format version {version!r}; this mupscale reads version {FORMAT_VERSION}" in result.err
        assert "upgrade mupscale" in result.err


def test_recipes_have_a_version(tmp_path):
    (tmp_path / "mine.yaml").write_text("version: 1\nextends: llama\n")
    assert load_recipe(tmp_path / "mine.yaml").axis_names == load_recipe("llama").axis_names
    (tmp_path / "other.yaml").write_text("extends: mine\nabout: what follows from it\n")
    assert load_recipe(tmp_path / "other.yaml").about == "what follows from it"
    (tmp_path / "later.yaml").write_text("extends: llama\nversion: 2\n")
    with pytest.raises(RecipeError, match="this mupscale reads version 1") as caught:
        load_recipe(tmp_path / "later.yaml")
    assert "later.yaml:2" in caught.value.message
    assert caught.value.hint == "upgrade mupscale"

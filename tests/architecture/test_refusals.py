"""The reasons for model types that have no exact map, and the error that quotes them."""

import pytest

from cli_runner import run
from helpers import change_config, save_model
from mupscale_cli.architecture import refusals
from mupscale_cli.architecture.loading import recipe_for
from mupscale_cli.errors import RecipeError


def test_a_type_is_refused_once_and_has_no_recipe():
    types = [name for refusal in refusals.refusals() for name in refusal.types]
    assert len(types) == len(set(types)) > 0
    assert [name for name in types if recipe_for({"model_type": name})] == []


def test_the_error_says_which_part_why_and_what_is_possible_instead(tmp_path, monkeypatch):
    monkeypatch.setattr(refusals, "_FILE", tmp_path / "refusals.yaml")
    (tmp_path / "refusals.yaml").write_text(
        "the odd layer:\n  types: [oddnet]\n  why: it counts its units\n  instead: widen `ffn` alone\n"
    )
    refusals.refusals.cache_clear()
    model = save_model(tmp_path / "model")
    change_config(model, model_type="oddnet")
    try:
        result = run("widen", str(model), "--factor", "2")
    finally:
        refusals.refusals.cache_clear()
    assert result.code == 2
    text = " ".join(result.err.split())
    assert "no axis of `oddnet` widens exactly: the odd layer: it counts its units" in text
    assert "hint: instead: widen `ffn` alone" in text


def test_an_entry_with_other_keys_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(refusals, "_FILE", tmp_path / "refusals.yaml")
    (tmp_path / "refusals.yaml").write_text("the odd layer:\n  types: [oddnet]\n  reason: it counts its units\n")
    refusals.refusals.cache_clear()
    try:
        with pytest.raises(RecipeError, match=r"refusals.yaml:2: an entry has types, why, instead"):
            refusals.refusals()
    finally:
        refusals.refusals.cache_clear()

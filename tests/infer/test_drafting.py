"""A model type without a recipe: drafted by the command, kept in the cache and beside the output, and recorded."""

import json
import logging

import pytest

import mupscale_cli
from cli_runner import run
from helpers import save_model
from mupscale_cli.architecture.loading import read_draft
from mupscale_cli.checkpoints.reading import open_checkpoint
from mupscale_cli.errors import MupscaleError, RecipeError
from mupscale_cli.infer import drafting
from mupscale_cli.tasks import planning

DRAFT = """
about: drafted for llama
match: {model_type: [llama]}
axes:
  ffn: {size: intermediate_size, about: neurons}
widen: [ffn]
config: {intermediate_size: ffn}
tensors:
  "model.layers.*.mlp.{gate,up}_proj.weight": "ffn, ."
  "model.layers.*.mlp.down_proj.weight": "., /ffn"
  "**": keep
"""


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A Llama, whose model type has no recipe here, and a cache of its own."""
    monkeypatch.setenv(drafting.CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr(planning, "recipe_for", lambda _config: None)
    return save_model(tmp_path / "narrow")


def drafts(tmp_path):
    return sorted((tmp_path / "cache/recipes").glob("*.yaml"))


def test_widen_drafts_once_and_the_record_holds_the_recipe(source, tmp_path, monkeypatch, caplog):
    widened = mupscale_cli.widen(source, tmp_path / "wide", factor=2, dtype="float64")
    assert widened.verification.max_rel < 1e-12
    assert sum("drafted a recipe for `llama` in" in record.getMessage() for record in caplog.records) == 1
    (kept,) = drafts(tmp_path)
    text = (tmp_path / "wide/recipe.yaml").read_text()
    assert kept.read_text().endswith(text)
    record = json.loads((tmp_path / "wide/mupscale.json").read_text())
    assert record["recipe"]["text"] == text
    assert "file" not in record["recipe"]

    def fail(*_arguments):
        raise AssertionError("drafted again")

    monkeypatch.setattr(drafting, "_draft", fail)
    assert run("widen", str(source), "--factor", "2", "--dry-run").code == 0  # from the cache
    monkeypatch.setenv(drafting.CACHE, str(tmp_path / "elsewhere"))
    assert run("verify", str(tmp_path / "wide")).code == 0  # from the record
    again = mupscale_cli.plan_widening(tmp_path / "wide", factor=2)
    assert again.recipe.text == text
    with pytest.raises(AssertionError, match="drafted again"):
        mupscale_cli.plan_widening(source, factor=2)


def test_what_no_infer_and_a_recipe_of_the_user_do(source, tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "draft_for", lambda _config: pytest.fail("drafts"))
    for command in (["widen", "--factor", "2"], ["inspect"]):
        result = run(command[0], str(source), *command[1:], "--no-infer")
        assert "no recipe for the model type `llama`" in result.err + result.out
    assert run("widen", str(source), "--factor", "2", "--recipe", "llama", "--dry-run").code == 0


def test_without_transformers_nothing_is_drafted(source, monkeypatch):
    monkeypatch.setattr(drafting.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(RecipeError, match="no recipe for the model type `llama`"):
        planning.choose_recipe(open_checkpoint(source))


def test_a_draft_that_fails_says_why(source, monkeypatch):
    def fail(*_arguments):
        raise MupscaleError("no axis of `llama` can be widened exactly", excerpt="  embed: 60 lines\n" * 60)

    monkeypatch.setattr(drafting, "_draft", fail)
    with pytest.raises(RecipeError, match="none could be drafted: no axis of `llama` can be widened") as refused:
        planning.choose_recipe(open_checkpoint(source))
    assert "60 lines" not in str(refused.value)  # who only widens cannot read a draft
    assert "`mupscale recipes infer PATH/config.json -o llama.yaml` repeats" in str(refused.value)


@pytest.mark.parametrize("damage", [lambda text: text[:-20], lambda _text: "", lambda text: text.replace("ffn", "fxn")])
def test_a_damaged_entry_of_the_cache_is_drafted_again(source, tmp_path, monkeypatch, damage):
    drafted = []

    def draft(model_type, _config, file):
        drafted.append(model_type)
        drafting._write(file, DRAFT)
        return DRAFT

    monkeypatch.setattr(drafting, "_draft", draft)
    config = open_checkpoint(source).config
    assert drafting.draft_for(config).text == DRAFT
    assert drafting.draft_for(config).text == DRAFT
    assert len(drafted) == 1
    (kept,) = drafts(tmp_path)
    kept.write_text(damage(kept.read_text()))
    assert drafting.draft_for(config).text == DRAFT
    assert len(drafted) == 2


def test_flags_make_another_entry_and_sizes_do_not(source, tmp_path, monkeypatch):
    monkeypatch.setattr(drafting, "_draft", lambda _type, _config, file: drafting._write(file, DRAFT) or DRAFT)
    config = open_checkpoint(source).config
    drafting.draft_for(config)
    drafting.draft_for({**config, "hidden_size": 4096})
    assert len(drafts(tmp_path)) == 1
    drafting.draft_for({**config, "attention_bias": not config["attention_bias"]})
    assert len(drafts(tmp_path)) == 2
    drafting.draft_for({**config, "num_codebooks": 9})  # a number of the layouts
    assert len(drafts(tmp_path)) == 3


def test_a_cache_that_cannot_be_written_is_no_error(source, tmp_path, monkeypatch, caplog):
    class Drafted:
        text, worst = DRAFT, 1e-15

    (tmp_path / "cache").write_text("a file")
    monkeypatch.setattr("mupscale_cli.infer.infer.infer", lambda *_arguments, **_options: Drafted)
    with caplog.at_level(logging.WARNING):
        assert drafting.draft_for(open_checkpoint(source).config).text == DRAFT
    assert "not kept: cannot write" in caplog.text


def test_a_draft_is_read_as_a_recipe():
    assert read_draft(DRAFT, "llama").widen == ("ffn",)

"""Checkpoints whose config is missing, or says too little: the model type by class or tensors, sizes by shapes."""

import json
import shutil

import pytest

from cli_runner import run
from helpers import change_config
from mupscale_cli.checkpoints.reading import open_checkpoint
from mupscale_cli.errors import PlanError
from mupscale_cli.tasks.planning import plan_widening
from mupscale_cli.tasks.reading import Reading
from mupscale_cli.tasks.recognition import fitting_recipes
from mupscale_cli.tasks.source import find_source
from mupscale_cli.tasks.verify import verify
from mupscale_cli.tasks.widen import widen


def without(saved, tmp_path, case, *keys):
    folder = shutil.copytree(saved(case), tmp_path / "narrow")
    file = folder / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in config.items() if key not in keys}))
    return folder


def bare(saved, tmp_path, case):
    """Return the weights of a model as a single file without a config."""
    return shutil.copy(saved(case) / "model.safetensors", tmp_path / "ckpt.safetensors")


@pytest.mark.parametrize("case", ["Bert-tied", "GPT2-tied", "Roberta-tied", "T5-tied"])
def test_the_class_tells_the_model_type(case, saved, tmp_path):
    source = find_source(without(saved, tmp_path, case, "model_type"))
    assert source.found == {"model_type": open_checkpoint(saved(case)).config["model_type"]}


def test_a_composite_is_recognized_beside_recipes_that_its_parts_do_not_go_with(saved, tmp_path):
    folder = without(saved, tmp_path, "Llava-siglip", "model_type", "architectures")
    assert [recipe.name for recipe in fitting_recipes(open_checkpoint(folder))] == ["llava"]


@pytest.mark.parametrize("case", ["Bert-tied", "GPT2-tied"])
def test_tensors_tell_the_model_type_if_one_recipe_fits(case, saved, tmp_path):
    folder = without(saved, tmp_path, case, "model_type", "architectures")
    widened = widen(folder, tmp_path / "wide", 2)
    assert widened.verification.agrees
    assert open_checkpoint(widened.output).config["model_type"] == case.partition("-")[0].lower()
    assert verify(widened.output).agrees


def test_several_fitting_recipes_are_named(saved, tmp_path):
    folder = without(saved, tmp_path, "Llama-untied", "model_type", "architectures")
    message = run("widen", str(folder), "--factor", "2").err
    assert "lacks `model_type`, and its tensors fit `llama`" in message
    assert "--set model_type=llama" in message


@pytest.mark.parametrize(
    ("case", "recipe", "settings"),
    [
        ("Llama-untied", "llama", {"num_attention_heads": 4, "attention_bias": True, "mlp_bias": True}),
        ("Qwen3-tied", "qwen3", {"tie_word_embeddings": True}),
        ("GPT2-tied", "gpt2", {"n_head": 4}),
        ("Bert-tied", "bert", {"num_attention_heads": 4}),
        ("Mixtral-untied", "mixtral", {"num_attention_heads": 4, "num_experts_per_tok": 2}),
    ],
)
def test_shapes_give_the_config_that_a_bare_file_lacks(case, recipe, settings, saved, tmp_path):
    file, narrow = bare(saved, tmp_path, case), open_checkpoint(saved(case)).config
    found = find_source(file, Reading(settings=settings), recipe=recipe).checkpoint.config
    assert {key: narrow[key] for key in found if key in narrow} == {key: found[key] for key in found if key in narrow}
    assert found["model_type"] == recipe
    wide = widen(file, tmp_path / "wide.safetensors", 2, recipe=recipe, settings=settings)
    assert wide.verification.agrees
    assert verify(wide.output).agrees
    assert json.loads((tmp_path / "wide.config.json").read_text())["model_type"] == recipe


def test_a_folder_may_lack_its_config_like_a_file(saved, tmp_path):
    folder = without(saved, tmp_path, "Llama-untied")
    (folder / "config.json").unlink()
    settings = {"num_attention_heads": 4, "attention_bias": True, "mlp_bias": True}
    wide = widen(folder, tmp_path / "wide", 2, recipe="llama", settings=settings, verify=False)
    config = open_checkpoint(wide.output).config
    assert config["num_attention_heads"] == 8
    assert (config["rms_norm_eps"], config["rope_parameters"]["rope_theta"]) == (1e-6, 1e4)  # of the class
    words = ["widen", str(folder), "-f", "2", "--dry-run", "--recipe", "llama"]
    words += [word for key, value in settings.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    assert "rms_norm_eps = 1e-06" in run(*words).err
    assert "rms_norm_eps" not in run(*words, "--set", "rms_norm_eps=1e-2").err


def test_the_files_beside_a_single_file_are_named(saved, tmp_path):
    file = bare(saved, tmp_path, "Llama-untied")
    shutil.copy(saved("Llama-untied") / "config.json", tmp_path)
    made = run("widen", str(file), "-o", str(tmp_path / "w.safetensors"), "-f", "2", "--no-verify")
    assert "rewritten" not in made.out
    assert str(tmp_path / "w.config.json") in made.out


@pytest.mark.parametrize(
    ("case", "recipe", "key"),
    [
        ("Llama-untied", "llama", "num_attention_heads"),
        ("GPT2-tied", "gpt2", "n_head"),
        ("Qwen3-tied", "qwen3", "tie_word_embeddings"),
    ],
)
def test_what_shapes_do_not_tell_is_asked_for_by_name(case, recipe, key, saved, tmp_path):
    with pytest.raises(PlanError, match=f"do not tell `{key}`") as refusal:
        find_source(bare(saved, tmp_path, case), recipe=recipe)
    assert f"--set {key}=" in refusal.value.text


def test_settings_that_no_sizes_satisfy_are_refused(saved, tmp_path):
    with pytest.raises(PlanError, match="contradict"):
        find_source(bare(saved, tmp_path, "Llama-untied"), Reading(settings={"num_attention_heads": 5}), recipe="llama")


def test_settings_correct_a_config(saved, tmp_path):
    folder = shutil.copytree(saved("Llama-untied"), tmp_path / "narrow")
    change_config(folder, vocab_size=7)
    with pytest.raises(PlanError, match="vocab_size"):
        plan_widening(folder, factor=2)
    widened = widen(folder, tmp_path / "wide", 2, settings={"vocab_size": 50})
    assert widened.verification.agrees
    assert verify(widened.output).agrees


def test_inspect_and_dry_run_take_settings(saved, tmp_path):
    file = bare(saved, tmp_path, "Llama-untied")
    options = ("--recipe", "llama", "--set", "num_attention_heads=4")
    for command in (("inspect", str(file)), ("widen", str(file), "--factor", "2", "--dry-run")):
        result = run(*command, *options)
        assert result.code == 0, result.err
        assert "vocab_size = 50" in result.err

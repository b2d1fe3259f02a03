"""Following a hint word for word leads on: to success, or to a final refusal that says something else."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from cli_runner import run
from helpers import MLP_MODULE, build, save_mlp
from mupscale_cli.errors import PlanError
from mupscale_cli.tasks.growing.grow import grow


def said(*arguments):
    result = run(*arguments)
    return result.code, " ".join(result.err.split())


@pytest.fixture
def narrow(saved, tmp_path):
    return shutil.copytree(saved("Llama-tied"), tmp_path / "narrow")


def test_a_file_with_unusual_keys(tmp_path):
    model = build("Llama-untied")
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1, momentum=0.9)
    content = {"a": {"b": model.state_dict()}, "o": optimizer.state_dict()}
    torch.save(content, tmp_path / "odd.pt")
    (tmp_path / "odd.config.json").write_text(model.config.to_json_string())
    words = ["widen", str(tmp_path / "odd.pt"), "-f", "2", "--dry-run"]
    for option, hint in (("--weights-key", r"`--weights-key`, such as `(a\.b)`"), ("--key", "`--key (o)`")):
        code, text = said(*words)
        assert code == 2, text
        words += [option, re.search(hint, text)[1]]
    code, text = said(*words)
    assert code == 0, text


def test_a_model_type_that_nothing_knows(narrow):
    config = json.loads((narrow / "config.json").read_text())
    (narrow / "config.json").write_text(json.dumps({**config, "model_type": "foo", "architectures": ["Foo"]}))
    code, text = said("widen", str(narrow), "-f", "2", "--dry-run")
    assert (code, "`mupscale recipes infer FILE:FUNCTION -o foo.yaml`" in text) == (2, True)
    assert "recipes infer FILE:FUNCTION" in said("recipes", "infer", "foo")[1]
    assert "--recipe llama" in text
    assert said("widen", str(narrow), "-f", "2", "--dry-run", "--recipe", "llama")[0] == 0


def test_a_config_that_is_stated_key_by_key(narrow):
    (narrow / "config.json").unlink()
    words = ["widen", str(narrow), "-f", "2", "--dry-run", "--set", "num_attention_heads=4"]
    assert "has no config.json, and its tensors fit" in said(*words)[1]
    assert "tie_word_embeddings" in said(*words, "--recipe", "llama")[1]
    assert said(*words, "--recipe", "llama", "--set", "tie_word_embeddings=true")[0] == 0


def test_a_config_without_model_type(narrow):
    config = json.loads((narrow / "config.json").read_text())
    del config["model_type"], config["architectures"]
    (narrow / "config.json").write_text(json.dumps(config))
    words = ["widen", str(narrow), "-f", "2", "--dry-run"]
    text = said(*words)[1]
    for hint in ("`(--set model_type=llama)`", "`(--recipe llama) --model FILE:FUNCTION`"):
        assert said(*words, *re.search(hint, text)[1].split())[0] == 0, hint
    save_file({"a.weight": torch.zeros(2, 3)}, narrow / "model.safetensors")
    (narrow / "config.json").write_text('{"width": 3}')
    text = said(*words)[1]
    assert "`mupscale recipes infer FILE:FUNCTION -o net.yaml`" in text
    assert "`--set model_type=NAME`" in text  # no type is proposed that does not fit
    (narrow / "config.json").unlink()
    assert "`--recipe net.yaml --model FILE:FUNCTION`" in said(*words)[1]


def test_an_output_that_something_else_has(narrow, tmp_path):
    folder, file = tmp_path / "notes", tmp_path / "a.txt"
    folder.mkdir()
    (folder / "todo.md").write_text("-")
    file.write_text("hello")
    words = ("widen", str(narrow), "-f", "2", "--no-verify", "-o")
    assert "already exists: it contains `todo.md`, and mupscale did not write it" in said(*words, str(folder))[1]
    assert "already exists: it is a JSON or text file, and mupscale did not" in said(*words, str(file))[1]
    for path, why in ((folder, "was not written by mupscale"), (file, "is a file, and the output is a folder")):
        assert "or remove it yourself" in said(*words, str(path))[1]
        code, text = said(*words, str(path), "--overwrite")
        assert (code, why in text, "hint: remove it yourself" in text) == (2, True, True)
    assert (folder / "todo.md").exists()
    assert file.read_text() == "hello"


def test_a_file_that_is_no_job_and_no_recipe(narrow, tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    text = said("run", str(tmp_path / "a.txt"))[1]
    assert "is no job file: it contains plain text" in text
    assert "a job file is YAML with a list of `steps:`" in text
    (tmp_path / "b.yaml").write_text("- hello")
    text = said("widen", str(narrow), "-f", "2", "--recipe", str(tmp_path / "b.yaml"))[1]
    assert "is no recipe: it contains a list" in text


def test_a_built_in_recipe_that_does_not_fit_needs_no_rule_of_ones_own(narrow):
    assert "another architecture" in said("widen", str(narrow), "-f", "2", "--dry-run", "--recipe", "gpt2")[1]
    tensors = load_file(narrow / "model.safetensors")
    more = {**tensors, "model.layers.0.self_attn.sinks": tensors["model.norm.weight"].clone()}
    save_file(more, narrow / "model.safetensors")
    text = said("widen", str(narrow), "-f", "2", "--dry-run")[1]
    assert "a variant of `llama` that this recipe does not cover" in text
    assert "another architecture" not in text
    del tensors["model.norm.weight"]
    save_file(tensors, narrow / "model.safetensors")
    assert "the checkpoint is incomplete" in said("widen", str(narrow), "-f", "2", "--dry-run")[1]


def test_sizes_that_the_class_refuses(narrow):
    text = said("widen", str(narrow), "-f", "1.3", "--dry-run")[1]
    assert "`--params N --dry-run`, in place of `--factor`" in text
    assert said("widen", str(narrow), "--factor", re.search("`--factor ([^`]*)`;", text)[1], "--dry-run")[0] == 0
    size = re.search("`--axis (kv=[0-9.]*)`", said("widen", str(narrow), "--axis", "kv=1.1", "--dry-run")[1])[1]
    assert said("widen", str(narrow), "--axis", size, "--dry-run")[0] == 0
    assert "choose a larger target" in said("widen", str(narrow), "--to", str(narrow), "--dry-run")[1]
    assert said("widen", str(narrow), "--params", "60K", "--dry-run")[0] == 0


def test_next_repeats_the_model_that_was_needed(tmp_path):
    (tmp_path / "net.py").write_text(MLP_MODULE)
    source, wide = str(save_mlp(tmp_path / "net.safetensors")), str(tmp_path / "wide.safetensors")
    widened = run("widen", source, "-f", "2", "--model", f"{tmp_path / 'net.py'}:build", "-o", wide)
    assert widened.code == 0, widened.err
    line = re.search(r"mupscale (verify \S+ --model \S+ --steps) 20", widened.out)[1]
    checked = run(*line.split(), "2")
    assert checked.code == 0, checked.err


def test_a_live_optimizer_has_no_options_of_the_command():
    model = build("Llama-untied")
    with pytest.raises(PlanError, match="ASGD: no known optimizer") as refused:
        grow(model, torch.optim.ASGD(model.parameters()), factor=2)
    assert refused.value.hint == "grow the model without its optimizer, and make a new one for it"
    assert grow(model, factor=2).optimizer is None

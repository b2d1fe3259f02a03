"""Bad input ends in one message that says what, where and what to do, with exit code 2 and nothing written."""

import json
import shutil
import struct
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from cli_runner import run
from helpers import save_mlp


@pytest.fixture
def narrow(saved, tmp_path):
    """Return a model directory that the test may change."""
    return shutil.copytree(saved("Llama-tied"), tmp_path / "narrow")


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def refused(folder, *arguments, says):
    """Run a command that must fail and write nothing; return its message."""
    before = listing(folder)
    result = run(*arguments)
    assert result.code == 2, result
    assert "Traceback" not in result.err
    assert result.err.count("error:") == 1
    assert result.out == ""
    for text in says:
        assert text in result.err
    assert listing(folder) == before
    return result.err


def change_config(directory, **values):
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def change_tensors(directory, change):
    file = directory / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def write_header(file, entries, data=b""):
    text = json.dumps(entries).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


# Files ----------------------------------------------------------------------------------------


def test_missing_file(tmp_path):
    refused(
        tmp_path, "widen", str(tmp_path / "nothing.safetensors"), "--factor", "2", says=["nothing.safetensors", "hint:"]
    )


def test_truncated_file(narrow, tmp_path):
    file = narrow / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    refused(tmp_path, "widen", str(narrow), "--factor", "2", says=["model.safetensors", "truncated"])


@pytest.mark.parametrize(
    ("entries", "size", "says"),
    [
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, 4, "takes 8"),
        (
            {
                "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
                "b": {"dtype": "F32", "shape": [1], "data_offsets": [2, 6]},
            },
            6,
            "overlap",
        ),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, 8, "gap"),
        ({"a": {"dtype": "F7", "shape": [1], "data_offsets": [0, 4]}}, 4, "F7"),
        ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, 4, "no valid shape"),
        ([], 0, "not a JSON object"),
    ],
)
def test_header_that_contradicts_the_file(entries, size, says, tmp_path):
    file = tmp_path / "net.safetensors"
    write_header(file, entries, bytes(size))
    refused(tmp_path, "widen", str(file), "--factor", "2", "--recipe", "mlp", says=["net.safetensors", says, "hint:"])


def test_header_longer_than_the_file(tmp_path):
    file = tmp_path / "net.safetensors"
    file.write_bytes(struct.pack("<Q", 10**12) + b"{}")
    refused(tmp_path, "widen", str(file), "--factor", "2", says=["announce", "1000000000000"])


def test_file_shorter_than_the_length_of_a_header(tmp_path):
    file = tmp_path / "net.safetensors"
    file.write_bytes(b"abc")
    refused(tmp_path, "widen", str(file), "--factor", "2", says=["it has 3 bytes", "begins with 8"])


def sharded(saved, tmp_path):
    return shutil.copytree(saved("Llama-untied", max_shard_size="40KB"), tmp_path / "sharded")


def test_missing_shard(saved, tmp_path):
    directory = sharded(saved, tmp_path)
    shard = min(directory.glob("model-*.safetensors"))
    shard.unlink()
    refused(tmp_path, "widen", str(directory), "--factor", "2", says=[shard.name, "missing", "hint:"])


def test_index_that_names_the_wrong_shard(saved, tmp_path):
    directory = sharded(saved, tmp_path)
    index = directory / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    name, file = next(iter(content["weight_map"].items()))
    other = next(shard for shard in content["weight_map"].values() if shard != file)
    content["weight_map"][name] = other
    index.write_text(json.dumps(content))
    refused(tmp_path, "widen", str(directory), "--factor", "2", says=[name, other, "hint:"])


def test_index_that_points_outside_the_directory(saved, tmp_path):
    directory = sharded(saved, tmp_path)
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    refused(tmp_path, "widen", str(directory), "--factor", "2", says=["../other.safetensors"])


def test_config_that_is_not_json(narrow, tmp_path):
    (narrow / "config.json").write_text("{")
    refused(tmp_path, "widen", str(narrow), "--factor", "2", says=["config.json", "not valid JSON"])


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickle(name, tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / name)
    says = ["no config.json", "--recipe"]
    refused(tmp_path, "widen", str(tmp_path / name), "--factor", "2", says=says)
    refused(tmp_path, "widen", str(tmp_path), "--factor", "2", says=says)


def test_empty_directory(tmp_path):
    (tmp_path / "empty").mkdir()
    refused(tmp_path, "widen", str(tmp_path / "empty"), "--factor", "2", says=["an empty folder"])


# Recipe and checkpoint ------------------------------------------------------------------------


def test_tensor_that_no_rule_matches(narrow, tmp_path):
    change_tensors(narrow, lambda tensors: tensors.update({"model.adapter.weight": torch.zeros(3)}))
    refused(
        tmp_path, "widen", str(narrow), "--factor", "2", says=["model.adapter.weight", "recipes/llama.yaml", "hint:"]
    )


def test_layer_that_lacks_a_tensor(narrow, tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    change_tensors(narrow, lambda tensors: tensors.pop(name))
    result = run("widen", str(narrow), "--factor", "2", "-o", str(tmp_path / "wide"))
    assert result.code == 2
    assert name in result.err
    assert not (tmp_path / "wide").exists()


def test_shapes_that_contradict_the_config(narrow, tmp_path):
    change_config(narrow, intermediate_size=41)
    says = ["recipes/llama.yaml:", "mlp", "^", "ffn = 41", "hint:"]
    refused(tmp_path, "widen", str(narrow), "--factor", "2", says=says)


def test_unknown_model_type(narrow, tmp_path):
    change_config(narrow, model_type="lama")
    refused(tmp_path, "widen", str(narrow), "--factor", "2", says=["lama", "did you mean `llama`?"])


def test_unknown_recipe(narrow, tmp_path):
    refused(
        tmp_path, "widen", str(narrow), "--factor", "2", "--recipe", "quen3", says=["quen3", "did you mean `qwen3`?"]
    )


def test_recipe_with_a_syntax_error(narrow, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text('axes: {embed: hidden_size}\ntensors:\n  "*.weight": "(embed, ."\n')
    error = refused(tmp_path, "widen", str(narrow), "--factor", "2", "--recipe", str(recipe), says=["mine.yaml:3", "^"])
    shown, caret = error.splitlines()[1:3]
    assert shown[caret.index("^")] == ","


def test_quantized_model(narrow, tmp_path):
    change_config(narrow, quantization_config={"quant_method": "gptq"})
    plain = ["no tensor is quantized", "remove `quantization_config`"]
    refused(tmp_path, "widen", str(narrow), "--factor", "2", says=plain)
    name = "model.layers.0.mlp.up_proj.qweight"
    change_tensors(narrow, lambda tensors: tensors.update({name: torch.zeros(8, 8, dtype=torch.int32)}))
    refused(tmp_path, "widen", str(narrow), "--factor", "2", says=["cannot widen quantized", "dequantize"])


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_packed_weights(dtype, narrow, tmp_path):
    name = "model.layers.0.mlp.up_proj.weight"
    change_tensors(narrow, lambda tensors: tensors.update({name: torch.zeros(tensors[name].shape).to(dtype)}))
    refused(tmp_path, "widen", str(narrow), "--factor", "2", says=[name, "hint:"])


def test_weights_that_are_not_finite(narrow, tmp_path):
    def spoil(tensors):
        tensors["model.layers.0.mlp.up_proj.weight"][3, 3] = float("nan")

    change_tensors(narrow, spoil)
    refused(tmp_path, "widen", str(narrow), "--factor", "2", says=["model.layers.0.mlp.up_proj.weight", "not finite"])


# Factors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--factor", "0"], ["--factor", "0"]),
        (["--factor", "-2"], ["--factor", "-2"]),
        (["--factor", "1.3"], ["1.3", "whole number"]),
        (["--factor", "3/0"], ["3/0", "--factor 1.5"]),
        (["--factor", "1e99999999"], ["1e99999999", "--factor 2"]),
        (["--factor", "two"], ["two", "--factor 2"]),
        (["--factor", "1"], ["nothing is widened"]),
        ([], ["nothing is widened", "--factor 2"]),
        (["--axis", "ffn"], ["ffn", "NAME=FACTOR", "NAME:SIZE", "ffn:8192"]),
        (["--axis", "ffn:big"], ["ffn:big", "whole number", "--axis ffn=2"]),
        (["--axis", "ffn:8"], ["`ffn` has size 40", "8"]),
        (["--axis", "ffn=0"], ["ffn", "0"]),
        (["--axis", "ffn=256"], ["256 times as large", "`--axis ffn:256`", "--allow-large-factor"]),
        (["--factor", "32"], ["every axis 32 times as large", "--allow-large-factor"]),
        (["--axis", "ffn=2", "--axis", "ffn=3"], ["ffn", "twice"]),
        (["--axis", "fnn=2"], ["fnn", "did you mean `ffn`?"]),
        (["--axis", "d=1.5"], ["`d`", "frequencies"]),
        (["--factor", "2", "--max-shard-size", "much"], ["much", "5GB"]),
        (["--factor", "2", "--optimizer-policy", "drop"], ["drop", "copy"]),
    ],
)
def test_factors(arguments, says, narrow, tmp_path):
    refused(tmp_path, "widen", str(narrow), *arguments, says=says)


def test_linked_axes_with_different_factors(saved, tmp_path):
    error = refused(tmp_path, "widen", str(saved("GPT2-tied")), "--axis", "h=2", says=["linked", "embed", "hint:"])
    assert "--axis embed=2" in error


@pytest.mark.parametrize(
    ("option", "value"), [("--dtype", "float12"), ("--device", "abacus"), ("--model", "nowhere.py:f")]
)
def test_verification_with_unknown_settings(option, value, narrow, tmp_path):
    refused(tmp_path, "widen", str(narrow), "--factor", "2", option, value, says=[value.partition(":")[0]])


# Output ---------------------------------------------------------------------------------------


def test_output_inside_the_input(narrow, tmp_path):
    refused(tmp_path, "widen", str(narrow), "--factor", "2", "-o", str(narrow / "wide"), says=["inside", "-o"])


def test_input_inside_the_output(narrow, tmp_path):
    refused(tmp_path, "widen", str(narrow), "--factor", "2", "-o", str(tmp_path), "--overwrite", says=["inside"])


def test_output_that_is_the_input(narrow, tmp_path):
    refused(tmp_path, "widen", str(narrow), "--factor", "2", "-o", str(narrow), says=["both"])


def test_output_that_exists(narrow, tmp_path):
    (tmp_path / "wide").mkdir()
    refused(
        tmp_path, "widen", str(narrow), "--factor", "2", "-o", str(tmp_path / "wide"), says=["exists", "--overwrite"]
    )


def test_overwrite_keeps_files_that_mupscale_did_not_write(narrow, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("words")
    arguments = ["widen", str(narrow), "--factor", "2", "-o", str(tmp_path / "thesis"), "--overwrite"]
    refused(tmp_path, *arguments, says=["was not written by mupscale"])


def test_not_enough_disk(narrow, tmp_path, monkeypatch):
    usage = SimpleNamespace(total=10**9, used=10**9, free=10**5)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    refused(tmp_path, "widen", str(narrow), "--factor", "2", says=["not enough disk", "free"])


def test_output_below_a_file(narrow, tmp_path):
    (tmp_path / "file").write_text("")
    refused(tmp_path, "widen", str(narrow), "--factor", "2", "-o", str(tmp_path / "file" / "wide"), says=["file"])


# Verify, inspect, demo ------------------------------------------------------------------------


def test_verify_of_a_checkpoint_that_was_not_widened(narrow, tmp_path):
    refused(tmp_path, "verify", str(narrow), says=["was not written by mupscale"])


def test_verify_without_anything_to_verify(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(tmp_path, "verify", says=["no widened checkpoint"])


def test_verify_of_a_changed_source(narrow, tmp_path):
    assert run("widen", str(narrow), "--factor", "2", "--no-verify").code == 0
    change_tensors(narrow, lambda tensors: tensors["model.norm.weight"].mul_(2))
    refused(tmp_path, "verify", str(tmp_path / "narrow-x2"), says=["model.safetensors", "is not the file"])


def test_verify_of_a_source_that_moved(narrow, tmp_path):
    assert run("widen", str(narrow), "--factor", "2", "--no-verify").code == 0
    narrow.rename(tmp_path / "elsewhere")
    refused(tmp_path, "verify", str(tmp_path / "narrow-x2"), says=["narrow", "mupscale verify NARROW WIDE"])
    assert run("verify", str(tmp_path / "elsewhere"), str(tmp_path / "narrow-x2")).code == 0


def test_inspect_of_a_file_that_no_recipe_fits(tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    shown = run("inspect", str(tmp_path / "x.safetensors"))
    assert shown.code == 0
    assert "no recipe fits" in shown.out
    assert "--recipe" in shown.out


def test_stack_without_hidden_layer(tmp_path):
    save_file({"0.weight": torch.zeros(3, 2)}, tmp_path / "x.safetensors")
    refused(tmp_path, "widen", str(tmp_path / "x.safetensors"), "--factor", "2", "--recipe", "mlp", says=["0.weight"])


def test_single_file_is_widened(tmp_path):
    """The tests above would pass if every file were refused; this one shows that it is not."""
    assert run("widen", str(save_mlp(tmp_path / "net.safetensors")), "--factor", "2").code == 0


def test_demo_into_an_existing_directory(tmp_path):
    refused(tmp_path, "demo", "-o", str(tmp_path), says=["exists", "-o"])


# Verification ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("--dtype=fp32", ["unknown data type `fp32`", "float32"]),
        ("--device=cuda:99", ["cannot use device `cuda:99`"]),
        ("--model=nowhere.py:build", ["no file at `nowhere.py`", "check the path before `:`"]),
        ("--model=torch:nothing", ["`torch` has no function `nothing`"]),
    ],
)
def test_a_verification_that_cannot_start_is_refused_before_the_first_byte(option, says, narrow, tmp_path):
    assert "hashing" not in refused(tmp_path, "widen", str(narrow), "-f", "2", option, says=says)


def test_an_output_is_kept_if_its_verification_fails(narrow, tmp_path):
    (tmp_path / "net.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n\n\nclass Broken(LlamaForCausalLM):\n"
        "    def forward(self, *_arguments, **_keywords):\n        raise ValueError('no')\n\n\n"
        "def build(config):\n    return Broken(LlamaConfig.from_dict(config))\n"
    )
    wide = str(tmp_path / "wide")
    failed = run("widen", str(narrow), "-f", "2", "-o", wide, "--model", str(tmp_path / "net.py") + ":build")
    assert failed.code == 2
    assert "all files are finished and kept" in failed.err
    assert "--resume" in failed.err
    continued = run("widen", str(narrow), "-f", "2", "-o", wide, "--resume")
    assert continued.code == 0
    assert "reusing 1 of 1 files" in continued.err


# Hints -------------------------------------------------------------------------------------------


def test_swapped_arguments_of_verify_are_recognized(narrow, tmp_path):
    assert run("widen", str(narrow), "-f", "2", "-o", str(tmp_path / "wide"), "--no-verify", "-q").code == 0
    says = [f"`{narrow}` was not written by mupscale", "hint: the source comes first"]
    refused(tmp_path, "verify", str(tmp_path / "wide"), str(narrow), says=says)


def test_a_size_needs_a_unit(narrow, tmp_path):
    says = ["`2` is not a size", "B, KB, MB, GB or TB"]
    refused(tmp_path, "widen", str(narrow), "-f", "2", "--max-shard-size", "2", says=says)

"""`mupscale widen` and `mupscale verify`."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file

from cli_runner import run, shell
from helpers import build, save_mlp

ESCAPES = re.compile(r"\x1b\[")


def test_widen_then_verify_a_single_file(saved, tmp_path):
    shutil.copy(saved("Llama-tied") / "model.safetensors", tmp_path / "ckpt.safetensors")
    shutil.copy(saved("Llama-tied") / "config.json", tmp_path)
    widened = shell("widen", "ckpt.safetensors", "--factor", "4", cwd=tmp_path)
    assert widened.returncode == 0, widened.stderr
    assert "same function" in widened.stdout
    assert {file.name for file in tmp_path.iterdir()} == {
        "ckpt.safetensors",
        "config.json",
        "ckpt-x4.safetensors",
        "ckpt-x4.config.json",
    }
    verified = shell("verify", cwd=tmp_path)
    assert verified.returncode == 0, verified.stderr
    assert "ckpt-x4.safetensors" in verified.stderr
    assert "same function" in verified.stdout


def test_models_that_differ_exit_with_1_and_are_not_published(saved, tmp_path):
    recipe = tmp_path / "wrong.yaml"
    text = 'extends: llama\ntensors:\n  "{prefix}layers.*.mlp.down_proj.weight": "embed, ffn"\n'
    recipe.write_text(text)
    narrow = shutil.copytree(saved("Llama-tied"), tmp_path / "narrow")
    result = run("widen", str(narrow), "--factor", "2", "--recipe", str(recipe))
    assert result.code == 1
    assert "model.layers.0.mlp.down_proj" in result.out
    assert "--no-verify" in result.err
    assert {file.name for file in tmp_path.iterdir()} == {"wrong.yaml", "narrow"}
    assert run("widen", str(narrow), "--factor", "2", "--recipe", str(recipe), "--no-verify").code == 0
    assert run("verify", str(tmp_path / "narrow-x2")).code == 1


def test_directory_keeps_the_files_that_loading_needs(saved, tmp_path):
    narrow = shutil.copytree(saved("Llama-tied"), tmp_path / "narrow")
    (narrow / "tokenizer.json").write_text("{}")
    (narrow / "README.md").write_text("a card of the narrow model")
    result = run("widen", str(narrow), "--factor", "2", "-o", str(tmp_path / "wide"))
    assert result.code == 0
    assert "README.md" in result.out
    names = {file.name for file in (tmp_path / "wide").iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors", "mupscale.json", "tokenizer.json"}


def test_shards_hold_the_same_tensors_as_one_file(saved, tmp_path):
    import transformers

    narrow = shutil.copytree(saved("Llama-untied", max_shard_size="40KB"), tmp_path / "narrow")
    assert run("widen", str(narrow), "--factor", "3", "--max-shard-size", "100KB").code == 0
    wide = tmp_path / "narrow-x3"
    shards = sorted(wide.glob("model-*.safetensors"))
    assert len(shards) > 2
    tokens = torch.randint(50, (2, 7), generator=torch.Generator().manual_seed(0))
    model = transformers.AutoModelForCausalLM.from_pretrained(wide)
    torch.testing.assert_close(model(tokens).logits, build("Llama-untied")(tokens).logits, atol=1e-5, rtol=1e-5)
    assert run("widen", str(narrow), "--factor", "3", "-o", str(tmp_path / "whole"), "--no-verify").code == 0
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    parts = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_overwrite_replaces_an_earlier_output(saved, tmp_path):
    arguments = ["widen", str(saved("Llama-tied")), "-o", str(tmp_path / "wide"), "--no-verify", "--factor"]
    assert run(*arguments, "2").code == 0
    assert run(*arguments, "3", "--overwrite").code == 0
    assert json.loads((tmp_path / "wide" / "config.json").read_text())["hidden_size"] == 144
    assert [file.name for file in tmp_path.iterdir()] == ["wide"]


def test_without_a_reference_model_the_output_is_not_verified(tmp_path):
    result = run("widen", str(save_mlp(tmp_path / "net.safetensors")), "--factor", "2")
    assert result.code == 0
    assert "not verified" in result.out
    assert "--model" in result.out


def test_dry_run_writes_nothing_and_shows_every_coefficient(saved, tmp_path):
    result = run("widen", str(saved("Llama-tied")), "--factor", "4", "-o", str(tmp_path / "wide"), "--dry-run")
    assert result.code == 0
    assert list(tmp_path.iterdir()) == []
    assert re.search(r"q_proj\.weight +32x48 -> 128x192 +\(kv g d\), /embed.* 1/4 +16", result.out)
    assert "hidden_size: 48 -> 192" in result.out


@pytest.mark.parametrize(
    "command",
    [
        ["recipes", "list"],
        ["recipes", "show", "gpt2"],
        ["recipes", "check", "llama", "--no-run"],
        ["inspect", "NARROW"],
        ["widen", "NARROW", "--factor", "2", "--dry-run"],
    ],
)
def test_piped_output_is_plain_and_whole(command, saved):
    result = run(*(str(saved("Llama-tied")) if word == "NARROW" else word for word in command))
    assert result.code == 0
    assert not ESCAPES.search(result.out)
    assert "…" not in result.out
    assert not any(line.endswith(" ") for line in result.out.splitlines())
    assert result.err == ""


def test_a_dry_run_says_whether_the_disk_has_room(saved, tmp_path, monkeypatch):
    arguments = ("widen", str(saved("Llama-tied")), "-f", "2", "-o", str(tmp_path / "wide"), "--dry-run")
    assert re.search(r"disk: .*B needed, .*B free at ", run(*arguments).out)
    document = json.loads(run(*arguments, "--json").out)
    assert [disk["needed"] for disk in document["disks"]] == [document["bytes"]]
    assert document["memory"]["needed"] >= 500_000_000
    seconds = document["seconds"]
    assert seconds.pop("total") == pytest.approx(sum(seconds.values()))
    assert 0 < seconds["write"] < seconds["verify"]
    assert "on a fast disk (2 s to start)" in run(*arguments, "--no-verify").out
    line = re.search(r"time: about (\d+) s on a fast disk \((.+)\)", run(*arguments).out)
    assert sum(int(part) for part in re.findall(r"(\d+) s to \w+", line[2])) == int(line[1])
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    full = run(*arguments)
    assert full.code == run(*arguments, "--json").code == 2
    assert "1.0 kB free" in full.out
    assert "NOT enough" in full.out

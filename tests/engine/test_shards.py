"""From disk to disk: the output is a function of input, recipe and factors, and of nothing else."""

import hashlib
import json
import shutil

import torch
from safetensors.torch import load_file, save_file

from mupscale_cli.checkpoints.digests import safetensors_digest
from mupscale_cli.engine.shards import convert
from mupscale_cli.tasks.planning import plan_widening
from mupscale_cli.tasks.source import find_source
from mupscale_cli.tasks.widen import widen


def digest(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_the_same_bytes_whatever_the_block(saved, tmp_path):
    found = find_source(saved("Qwen3-tied")).checkpoint
    plan = plan_widening(saved("Qwen3-tied"), factor=3)
    digests = set()
    for block in (1, 100, 5000, 1 << 23):
        folder = tmp_path / str(block)
        folder.mkdir()
        convert(plan.shards, found.tensors, folder, metadata={"format": "pt"}, block_bytes=block)
        digests.add(digest(folder / "model.safetensors"))
    assert len(digests) == 1


def test_the_same_bytes_again_and_wherever_it_lies(saved, tmp_path):
    first = shutil.copytree(saved("Llama-tied"), tmp_path / "a" / "narrow")
    second = shutil.copytree(saved("Llama-tied"), tmp_path / "elsewhere" / "narrow")
    for source in (first, second):
        widen(source, source.parent / "wide", 3, verify=False)
    for name in ("model.safetensors", "config.json", "mupscale.json"):
        assert digest(first.parent / "wide" / name) == digest(second.parent / "wide" / name)


def test_the_record_says_what_was_done_and_no_more(saved, tmp_path):
    source = shutil.copytree(saved("Llama-tied"), tmp_path / "narrow")
    record = widen(source, tmp_path / "deep" / "wide", 2, verify=False).record
    assert record["source"]["path"] == "../narrow"
    files = record["source"]["files"]
    assert files["model.safetensors"]["digest"] == safetensors_digest(source / "model.safetensors")
    assert files["config.json"]["bytes"] == (source / "config.json").stat().st_size
    assert record["axes"]["kv"] == {"size": 2, "wide_size": 4, "factor": 2}
    rules = {rule["pattern"]: rule for rule in record["rules"]}
    assert rules["{prefix}layers.*.mlp.down_proj.weight"]["parts"] == [{"coefficient": 0.5, "multiplicity": 4}]
    assert len(rules["{prefix}layers.*.mlp.{gate,up}_proj.weight"]["tensors"]) == 4
    assert str(tmp_path) not in json.dumps(record)


def test_copies_of_every_tensor_add_up_to_the_source_bit_for_bit(saved, tmp_path):
    """bfloat16 by 3, where naive division would leave errors of one part in 400."""
    source = saved("Llama-untied", dtype=torch.bfloat16)
    widen(source, tmp_path / "wide", 3, verify=False)
    narrow, wide = load_file(source / "model.safetensors"), load_file(tmp_path / "wide" / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    copies = wide[name].double().reshape(48, 3, 40, 3)
    for copy in range(3):
        assert torch.equal(copies[:, copy].sum(-1), narrow[name].double())


def test_integers_and_flags_are_copied(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text('axes: {a: from shapes}\nwiden: [a]\ntensors:\n  "*.ids": "a"\n  "*.flag": keep\n  w: "., /a"\n')
    tensors = {"x.ids": torch.tensor([3, 7, 2**40]), "x.flag": torch.tensor(True), "w": torch.randn(2, 3)}
    save_file(tensors, tmp_path / "x.safetensors")
    widen(tmp_path / "x.safetensors", tmp_path / "y.safetensors", 2, recipe=recipe, verify=False)
    wide = load_file(tmp_path / "y.safetensors")
    assert wide["x.ids"].tolist() == [3, 3, 7, 7, 2**40, 2**40]
    assert wide["x.flag"].item() is True
    assert torch.equal(wide["w"][:, ::2] * 2, tensors["w"])

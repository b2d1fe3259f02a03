"""Widening from disk to disk: the output depends only on input, recipe and factors."""

import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import save_model
from mupscale_cli.checkpoints.digests import file_digest
from mupscale_cli.engine.shards import write_shards
from mupscale_cli.tasks.planning import plan_widening
from mupscale_cli.tasks.source import find_source
from mupscale_cli.tasks.widen import widen
from mupscale_cli.verification.precision import tolerance
from outputs import KIB, digests, listing, merged, metadata_of, shards_of


def digest(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_the_bytes_do_not_depend_on_the_block_size(saved, tmp_path):
    found = find_source(saved("Qwen3-tied")).checkpoint
    plan = plan_widening(saved("Qwen3-tied"), factor=3)
    digests = set()
    for block in (1, 100, 5000, 1 << 23):
        folder = tmp_path / str(block)
        folder.mkdir()
        write_shards(plan.shards, found.tensors, folder, metadata={"format": "pt"}, block_bytes=block)
        digests.add(digest(folder / "model.safetensors"))
    assert len(digests) == 1


def test_the_bytes_do_not_depend_on_the_path(saved, tmp_path):
    first = shutil.copytree(saved("Llama-tied"), tmp_path / "a" / "narrow")
    second = shutil.copytree(saved("Llama-tied"), tmp_path / "elsewhere" / "narrow")
    for source in (first, second):
        widen(source, source.parent / "wide", 3, verify=False)
    for name in ("model.safetensors", "config.json", "mupscale.json"):
        assert digest(first.parent / "wide" / name) == digest(second.parent / "wide" / name)


def test_the_record_contains_no_absolute_path(saved, tmp_path):
    source = shutil.copytree(saved("Llama-tied"), tmp_path / "narrow")
    record = widen(source, tmp_path / "deep" / "wide", 2, verify=False).record
    assert record["source"]["path"] == "../narrow"
    files = record["source"]["files"]
    assert files["model.safetensors"]["xxh128"] == file_digest(source / "model.safetensors")
    assert files["config.json"]["bytes"] == (source / "config.json").stat().st_size
    assert record["axes"]["kv"] == {"size": 2, "wide_size": 4, "factor": 2}
    rules = {rule["pattern"]: rule for rule in record["rules"]}
    assert rules["{prefix}layers.*.mlp.down_proj.weight"]["parts"] == [{"coefficient": 0.5, "multiplicity": 4}]
    assert len(rules["{prefix}layers.*.mlp.{gate,up}_proj.weight"]["tensors"]) == 4
    assert str(tmp_path) not in json.dumps(record)


def test_copies_of_every_tensor_add_up_to_the_source_bit_for_bit(saved, tmp_path):
    """With bfloat16 and factor 3, naive division would leave errors of one part in 400."""
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


@pytest.mark.parametrize("max_shard_size", [1, 30 * KIB, 100 * KIB])
def test_tensors_do_not_depend_on_the_shard_size(max_shard_size, saved, tmp_path):
    source = saved("Qwen3-tied", dtype=torch.bfloat16)
    widen(source, tmp_path / "one", 3, verify=False)
    widen(source, tmp_path / "many", 3, max_shard_size=max_shard_size, verify=False)
    assert len(shards_of(tmp_path / "one")) == 1
    assert len(shards_of(tmp_path / "many")) > 2
    assert merged(tmp_path / "many") == merged(tmp_path / "one")


def test_widening_twice_gives_the_same_bytes(saved, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copytree(saved("Gemma2-tied"), tmp_path / folder / "narrow")
        widen(tmp_path / folder / "narrow", factor=3, max_shard_size=100 * KIB, dtype="float64")
    assert digests(tmp_path / "a" / "narrow-x3") == digests(tmp_path / "b" / "narrow-x3")


def test_shards_respect_their_size_limit_and_are_indexed(saved, tmp_path):
    limit = 30 * KIB
    widened = widen(saved("Llama-tied"), tmp_path / "wide", 2, max_shard_size=limit, verify=False)
    index = json.loads((tmp_path / "wide" / "model.safetensors.index.json").read_text())
    found, total = {}, 0
    for file in shards_of(tmp_path / "wide"):
        tensors = load_file(file)
        sizes = [tensor.nbytes for tensor in tensors.values()]
        assert sum(sizes) <= limit or len(sizes) == 1
        total += sum(sizes)
        found.update(dict.fromkeys(tensors, file.name))
        assert metadata_of(file)["format"] == "pt"
    assert index["weight_map"] == found
    assert index["metadata"]["total_size"] == total == widened.plan.num_bytes
    assert not (tmp_path / "wide" / "model.safetensors").exists()


def test_shards_can_become_one_file_and_one_file_shards(tmp_path):
    sharded = save_model(tmp_path / "sharded", max_shard_size="30KB")
    whole = save_model(tmp_path / "whole")
    assert len(shards_of(sharded)) > 2
    widen(sharded, tmp_path / "a", 2, verify=False)
    widen(whole, tmp_path / "b", 2, max_shard_size=30 * KIB, verify=False)
    assert listing(tmp_path / "a") == ["config.json", "generation_config.json", "model.safetensors", "mupscale.json"]
    assert merged(tmp_path / "a") == merged(tmp_path / "b")


def logits_of(directory, tokens, **options):
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager", **options)
    with torch.no_grad():
        return model.eval()(tokens).logits


def test_shards_load_with_from_pretrained_and_compute_the_same(saved, tmp_path):
    tokens = torch.arange(50).view(2, 25)
    widened = widen(saved("Llama-untied"), tmp_path / "wide", 3, max_shard_size=30 * KIB, verify=False)
    widen(saved("Llama-untied"), tmp_path / "whole", 3, verify=False)
    logits = logits_of(tmp_path / "wide", tokens)
    assert torch.equal(logits, logits_of(tmp_path / "whole", tokens))
    narrow = logits_of(saved("Llama-untied"), tokens)
    allowed, _ = tolerance(widened.plan, torch.float32)
    assert (logits - narrow).abs().max() <= allowed * narrow.abs().max()

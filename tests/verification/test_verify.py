"""Verification: what it compares, in what precision, what it accepts, and above all what it refuses."""

import gc
import json
import math
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from helpers import mlp_tensors, save_mlp, save_model
from mupscale_cli.checkpoints.reading import open_checkpoint
from mupscale_cli.errors import VerifyError
from mupscale_cli.tasks.planning import plan_widening
from mupscale_cli.tasks.verify import verify
from mupscale_cli.tasks.widen import widen
from mupscale_cli.verification import comparing, placement
from mupscale_cli.verification.activations import name_in, recording, store_scaled
from mupscale_cli.verification.comparing import verify_checkpoints
from mupscale_cli.verification.inputs import Inputs, reference_inputs, user_inputs
from mupscale_cli.verification.models import build_reference_model, build_user_model, load_user_module
from mupscale_cli.verification.options import VerifyOptions
from mupscale_cli.verification.precision import everything_in, tolerance
from mupscale_cli.verification.result import CannotVerify, Comparison, Verification, compare

EXACT = VerifyOptions(dtype="float64")
MLP = """
from torch import nn

def build(config):
    rows_columns = [config["shapes"][f"{i}.weight"] for i in (0, 2, 4)]
    layers = [nn.Linear(columns, rows) for rows, columns in rows_columns]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
"""


@pytest.fixture(scope="module", autouse=True)
def _few_objects_to_collect():
    """A verification collects garbage twice; what the imports left is not searched each time."""
    import transformers  # noqa: F401

    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def mlp(tmp_path):
    """A perceptron without config in one file, and the option that builds it."""
    (tmp_path / "net.py").write_text(MLP)
    return save_mlp(tmp_path / "mlp.safetensors"), f"{tmp_path / 'net.py'}:build"


def verified(source, wide, options=EXACT):
    """Verify a pair of checkpoints by the plan for factor 2."""
    return verify_checkpoints(open_checkpoint(source), open_checkpoint(wide), plan_widening(source, 2), options)


# Teeth: a wrong rule --------------------------------------------------------------------------

# Case, recipe, rules with one mistake, axes (None: all), and the first module whose output is not what the
# recipe says of it; None where all of them are and only the logits differ.
LAYERS = "{prefix}layers.*."
WRONG_RULES = [
    (
        "Qwen2-untied",
        "llama",
        {LAYERS + "self_attn.q_proj.weight": "(kv g d), embed"},
        None,
        "model.layers.0.self_attn.q_proj",
    ),
    (
        "Llama-untied",
        "llama",
        {LAYERS + "self_attn.o_proj.weight": "embed, (kv g d)"},
        None,
        "model.layers.0.self_attn.o_proj",
    ),
    (
        "Mistral-tied",
        "llama",
        {LAYERS + "mlp.{gate,up}_proj.weight": "ffn, embed"},
        None,
        "model.layers.0.mlp.gate_proj",
    ),
    ("SmolLM3-untied", "llama", {"lm_head.weight?": "., embed"}, None, "lm_head"),
    # Nothing divides the logits of the tied readout.
    ("Llama-tied", "llama", {"{prefix}norm.weight": "embed"}, None, None),
    # The queries are what this rule says, but meet the keys of other heads.
    (
        "Qwen3-untied",
        "qwen3",
        {LAYERS + "self_attn.q_proj.weight": "(g kv d), /embed"},
        ("kv",),
        "model.layers.0.self_attn.o_proj",
    ),
    ("Qwen3-tied", "qwen3", {LAYERS + "mlp.down_proj.weight": "embed, ffn"}, None, "model.layers.0.mlp.down_proj"),
    (
        "Olmo2-untied",
        "olmo2",
        {LAYERS + "self_attn.q_norm.weight": "(g kv d)"},
        ("kv",),
        "model.layers.0.self_attn.q_norm",
    ),
    ("Gemma-untied", "gemma", {"{prefix}embed_tokens.weight": "., embed"}, None, "model.embed_tokens"),
    ("Gemma2-tied", "gemma", {"{prefix}norm.weight": "embed | embed^-0.5"}, None, "model.norm"),
    ("Gemma3-tied", "gemma", {"{prefix}norm.weight": "embed"}, None, None),
    ("GPT2-tied", "gpt2", {"{prefix}h.*.mlp.c_fc.weight": "embed, ffn"}, None, "transformer.h.0.mlp.c_fc"),
    # The queries are what these rules say, but attention divides by the root of the new head_dim.
    (
        "GPT2-untied",
        "gpt2",
        {
            "{prefix}h.*.attn.c_attn.weight": "/embed, [h d + h d + h d]",
            "{prefix}h.*.attn.c_attn.bias": "[h d + h d + h d]",
        },
        ("embed", "d"),
        "transformer.h.0.attn.c_proj",
    ),
    (
        "ResNet-basic",
        "resnet",
        {"{prefix}encoder.stages.*.layers.*.layer.*.convolution.weight": "c, c, ., ."},
        None,
        "resnet.encoder.stages.0.layers.0.layer.0.convolution",
    ),
    ("ResNet-bottleneck", "resnet", {"classifier.1.weight?": "., c"}, None, "classifier.1"),
]


def wrong_recipe(tmp_path, recipe, rules):
    """A recipe that is the built-in one but for some rules."""
    file = tmp_path / "wrong.yaml"
    lines = (f'  "{pattern}": "{layout}"\n' for pattern, layout in rules.items())
    file.write_text(f"extends: {recipe}\ntensors:\n{''.join(lines)}")
    return file


@pytest.mark.parametrize(("dtype", "factor"), [(torch.float32, 2), (torch.bfloat16, 3)], ids=str)
@pytest.mark.parametrize(
    ("case", "recipe", "rules", "axes", "module"),
    [pytest.param(*row, id=f"{row[0]}: {next(iter(row[2].items()))}") for row in WRONG_RULES],
)
def test_a_wrong_rule_is_found_and_nothing_published(case, recipe, rules, axes, module, dtype, factor, saved, tmp_path):
    source = saved(case, dtype=dtype)
    file = wrong_recipe(tmp_path, recipe, rules)
    factors = dict.fromkeys(axes or (), factor)
    found = widen(source, tmp_path / "wide", None if axes else factor, factors, recipe=file).verification
    assert not found.agrees
    assert found.max_rel > 1000 * found.tolerance
    assert (found.first_difference and found.first_difference.what) == module
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.yaml"]


def test_a_wrong_rule_is_found_in_a_model_of_the_user(mlp, tmp_path):
    source, model = mlp
    file = wrong_recipe(tmp_path, "mlp", {"{prefix}{last}.weight": "., hidden"})
    found = widen(source, tmp_path / "wide.safetensors", 2, recipe=file, verify=VerifyOptions(model=model)).verification
    assert not found.agrees
    assert found.first_difference.what == "4"
    assert not (tmp_path / "wide.safetensors").exists()


def test_a_wrong_rule_is_found_where_it_hides_below_float32(saved, tmp_path):
    """An exponent that is off by 1e-6 changes everything by less than float32 rounds."""
    file = wrong_recipe(tmp_path, "gemma", {"{prefix}embed_tokens.weight": "., embed | embed^-0.500001"})
    found = widen(saved("Gemma-untied"), tmp_path / "wide", 2, recipe=file, verify=EXACT).verification
    assert not found.agrees
    assert found.first_difference.what == "model.embed_tokens"


# Teeth: a wrong file --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide_llama(saved, tmp_path_factory):
    """A directory that is a right widening of `Llama-untied` by 2, and one to spoil."""
    folder = tmp_path_factory.mktemp("wide")
    for name in ("right", "spoiled"):
        widen(saved("Llama-untied"), folder / name, 2, verify=False)
    return folder / "right", folder / "spoiled"


def spoiled(wide_llama, name, change):
    """The second directory with one tensor changed."""
    right, directory = wide_llama
    tensors = load_file(right / "model.safetensors")
    change(tensors[name])
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def flip_last_bits(tensor):
    """Move the first column, or the first element, by one unit in the last place."""
    column = tensor[..., 0]
    column.copy_(torch.nextafter(column, torch.full_like(column, math.inf)))


OF_A_LAYER = [
    "input_layernorm.weight",
    "self_attn.q_proj.weight",
    "self_attn.k_proj.weight",
    "self_attn.k_proj.bias",
    "self_attn.v_proj.weight",
    "self_attn.o_proj.weight",
    "post_attention_layernorm.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "mlp.down_proj.weight",
    "mlp.down_proj.bias",
]
ALL_TENSORS = [
    "model.embed_tokens.weight",
    *(f"model.layers.1.{name}" for name in OF_A_LAYER),
    "model.norm.weight",
    "lm_head.weight",
]


@pytest.mark.parametrize("name", ALL_TENSORS)
def test_the_last_bit_of_a_weight_is_seen_and_its_module_named(name, wide_llama, saved):
    wide = spoiled(wide_llama, name, flip_last_bits)
    found = verified(saved("Llama-untied"), wide)
    assert not found.agrees
    assert found.first_difference.what == name.rpartition(".")[0]


def test_rows_in_another_order_are_seen(wide_llama, saved):
    """Concatenated copies instead of interleaved ones: each row is there, none is missing."""

    def permute(tensor):
        heads = tensor.view(4, 8, -1)  # two kv heads, two copies of each
        heads.copy_(heads[[0, 2, 1, 3]].clone())

    wide = spoiled(wide_llama, "model.layers.0.self_attn.v_proj.weight", permute)
    found = verified(saved("Llama-untied"), wide)
    assert not found.agrees
    assert found.first_difference.what == "model.layers.0.self_attn.v_proj"


def test_the_right_file_agrees(wide_llama, saved):
    assert verified(saved("Llama-untied"), wide_llama[0]).agrees


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_a_difference(value, wide_llama, saved):
    wide = spoiled(wide_llama, "model.layers.1.mlp.up_proj.bias", lambda tensor: tensor[:1].fill_(value))
    found = verified(saved("Llama-untied"), wide)
    assert not found.agrees
    assert found.first_difference.what == "model.layers.1.mlp.up_proj"
    assert found.max_rel == math.inf
    json.dumps(found.as_record(), allow_nan=False)


def test_nan_in_both_models_is_no_agreement(tmp_path):
    source = save_model(tmp_path / "narrow")
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.0.input_layernorm.weight"][0] = math.nan
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    widen(source, tmp_path / "wide", 2, verify=False, allow_nonfinite=True)
    with pytest.raises(CannotVerify, match="not finite"):
        verify(tmp_path / "wide", source)


# What is compared -----------------------------------------------------------------------------


def test_models_that_generate_are_compared_with_padding_and_cache(saved, tmp_path):
    found = widen(saved("Qwen2-tied"), tmp_path / "wide", 2, verify=EXACT).verification
    what = [comparison.what for comparison in found.comparisons]
    assert {"logits", "logits of a left-padded batch", "logits of cached generation"} < set(what)
    assert any("`model.norm`" in name for name in what)


def without_padding(_query, mask):
    """The first sequence is whole, so its mask is the causal one."""
    return mask[:1].expand_as(mask)


def forgetful(query, mask):
    """With a cache, one query at a time: it misses the oldest key."""
    return mask.index_fill(-1, torch.tensor(0), torch.finfo(mask.dtype).min) if query.shape[2] == 1 else mask


@pytest.mark.parametrize(
    ("change", "differing"),
    [
        (without_padding, {"logits of a left-padded batch", "logits of cached generation"}),
        (forgetful, {"logits of cached generation"}),
    ],
)
def test_what_only_padding_or_a_cache_shows_is_seen(change, differing, monkeypatch, saved, tmp_path):
    import transformers

    attend = transformers.models.llama.modeling_llama.eager_attention_forward

    def careless(module, query, key, value, attention_mask, **rest):
        is_wide = query.shape[1] > 4
        return attend(module, query, key, value, change(query, attention_mask) if is_wide else attention_mask, **rest)

    monkeypatch.setattr(transformers.models.llama.modeling_llama, "eager_attention_forward", careless)
    found = widen(saved("Llama-tied"), tmp_path / "wide", 2, verify=EXACT).verification
    assert not found.agrees
    assert {c.what for c in found.comparisons if not c.max_rel <= found.tolerance} == differing


def test_generation_covers_more_than_one_step_and_is_forced(saved):
    """Both models follow the same tokens, so a tie between two logits cannot part them."""
    model = build_reference_model(open_checkpoint(saved("Llama-untied")), torch.float64)
    tokens, mask = torch.tensor([[3, 4, 5]]), torch.ones(1, 3, dtype=torch.int64)
    logits, greedy = comparing._generate(model, tokens, mask, 8)
    other = greedy.clone()
    other[0, 3:] = torch.arange(greedy.shape[1] - 3) + 7
    forced_logits, forced = comparing._generate(model, tokens, mask, 8, other)
    assert torch.equal(forced, other)
    assert torch.equal(logits[:, 0], forced_logits[:, 0])
    assert logits.shape[1] > 2
    steps = model(input_ids=forced, attention_mask=torch.ones_like(forced)).logits[:, 2:-1]
    torch.testing.assert_close(forced_logits.double(), steps, rtol=0, atol=1e-4)  # rotary tables are float32 here


def test_images_have_logits_only(saved, tmp_path):
    found = widen(saved("ResNet-basic"), tmp_path / "wide", 2, verify=EXACT).verification
    assert not [c.what for c in found.comparisons if "padded" in c.what or "generation" in c.what]
    assert found.comparisons[0].what == "logits"
    assert "images" in found.inputs


def test_the_seed_changes_the_inputs_and_the_same_seed_repeats(wide_llama, saved):
    source, wide = open_checkpoint(saved("Llama-untied")), open_checkpoint(wide_llama[0])
    plan = plan_widening(source.path, 2)
    one, again, other = (
        verify_checkpoints(source, wide, plan, VerifyOptions(dtype="float64", seed=seed)) for seed in (0, 0, 1)
    )
    assert one == again
    assert one.comparisons != other.comparisons
    assert other.agrees


# Rounding of what is scaled -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "factor", "rounded"),
    [
        ("Llama-untied", 3, 0),  # splitting is exact
        ("Qwen3-untied", 3, 0),
        ("Llama-tied", 2, 0),  # halving the norm's gain is exact
        ("Llama-tied", 3, 1),  # dividing it by 3 is not
        ("Olmo3-tied", 3, 1),
        ("Gemma-tied", 2, 2),  # embedding and norm by 1/sqrt(2)
        ("Gemma-tied", 4, 1),  # the norm is stored as w, but 1 + w is halved
        ("GPT2-tied", 3, 2),  # gain and bias of the last norm
    ],
)
def test_what_rounding_moves_is_told_and_hides_nothing(case, factor, rounded, saved, tmp_path):
    found = widen(saved(case, dtype=torch.bfloat16), tmp_path / "wide", factor, verify=EXACT).verification
    assert found.agrees
    assert found.max_rel < 1e-12
    assert found.rounded_tensors == rounded
    if rounded:
        # Rounding to bfloat16 moves each element by up to 2^-9; the logits of a small model by about as much.
        assert 1e-6 < found.rounding.max_rel < 1
    else:
        assert found.rounding is None


def test_the_narrow_model_is_rounded_as_the_stored_one_is(saved):
    source = saved("Gemma-tied", dtype=torch.bfloat16)
    plan = plan_widening(source, 2)
    model = build_reference_model(open_checkpoint(source), torch.float64)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    store_scaled(model, plan)
    root = 2**0.5
    stored_embedding = (before["model.embed_tokens.weight"] / root).bfloat16().double()
    stored_norm = ((1 + before["model.norm.weight"]) / root - 1).bfloat16().double()
    expected = {
        **before,
        "model.embed_tokens.weight": stored_embedding * root,
        "lm_head.weight": stored_embedding * root,
        "model.norm.weight": (1 + stored_norm) * root - 1,
    }
    after = model.state_dict()
    for name, value in expected.items():
        # Two roundings of float64 for two operations, on numbers below 8.
        torch.testing.assert_close(after[name], value, rtol=0, atol=2**-48, msg=name)
    assert not torch.equal(before["model.norm.weight"], after["model.norm.weight"])


# Precision ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("previous", [torch.float32, torch.float64])
def test_the_default_type_is_set_and_restored_even_after_an_error(dtype, previous):
    torch.set_default_dtype(previous)
    try:
        with everything_in(dtype):
            assert torch.zeros(1).dtype == dtype
        assert torch.get_default_dtype() == previous
        with pytest.raises(ValueError, match="inside"), everything_in(dtype):
            raise ValueError("inside")
        assert torch.get_default_dtype() == previous
    finally:
        torch.set_default_dtype(torch.float32)


LOWERING = {
    "float()": lambda x: x.float(),
    "half()": lambda x: x.half(),
    "bfloat16()": lambda x: x.bfloat16(),
    "to(dtype)": lambda x: x.to(torch.float32),
    "to(dtype=)": lambda x: x.to(dtype=torch.bfloat16),
    "to(device, dtype)": lambda x: x.to("cpu", torch.float16),
    "type(dtype)": lambda x: x.type(torch.float32),
    "softmax": lambda x: torch.nn.functional.softmax(x, dim=-1, dtype=torch.float32),
    "sum": lambda x: x.sum(dtype=torch.float32),
    "zeros": lambda x: torch.zeros(3, dtype=torch.float32),  # noqa: ARG005
    "arange": lambda x: torch.arange(3, dtype=torch.float32),  # noqa: ARG005
    "full_like": lambda x: torch.full_like(x, 1, dtype=torch.float16),
    "to(other)": lambda x: x.to(torch.ones(1, dtype=torch.float32)),
    "type_as": lambda x: x.type_as(torch.ones(1, dtype=torch.float32)),
}


@pytest.mark.parametrize("name", LOWERING)
def test_float64_mode_lets_nothing_be_lowered(name):
    values = torch.rand(3, dtype=torch.float64)
    with everything_in(torch.float64):
        assert LOWERING[name](values).dtype == torch.float64
    assert LOWERING[name](values).dtype != torch.float64


def test_float64_mode_leaves_integers_and_bytes_alone():
    with everything_in(torch.float64):
        assert torch.arange(3, dtype=torch.int32).dtype == torch.int32
        assert torch.ones(2).to(torch.int64).dtype == torch.int64
        assert torch.ones(2).to(torch.bool).dtype == torch.bool
        one = torch.frombuffer(bytearray(b"\x00\x00\x80\x3f"), dtype=torch.float32)
        assert one.tolist() == [1.0]
        assert torch.tensor([0x3F800000], dtype=torch.int32).view(torch.float32).tolist() == [1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_modes_lower_as_the_reference_does(dtype):
    with everything_in(dtype):
        assert torch.ones(2, dtype=torch.float64).float().dtype == torch.float32
        assert torch.ones(2, dtype=torch.float64).to(torch.bfloat16).dtype == torch.bfloat16


# The wide perceptron by k has weights of (8k, 5), (6k, 8k), (3, 6k): three products, sums of at most 8k.
@pytest.mark.parametrize(
    ("dtype", "factor", "expected"),
    [
        (torch.float64, 2, 8 * 2**-53 * 3 * 16**0.5),
        (torch.float64, 8, 8 * 2**-53 * 3 * 64**0.5),
        (torch.float32, 2, 8 * 2**-24 * 3 * 16**0.5),
        (torch.float16, 2, 8 * 2**-11 * 3),  # summed in float32, rounded once
        (torch.bfloat16, 8, 8 * 2**-8 * 3),
    ],
)
def test_the_tolerance_follows_from_type_depth_and_length(dtype, factor, expected, mlp):
    allowed, reason = tolerance(plan_widening(mlp[0], factor), dtype)
    assert allowed == pytest.approx(expected, rel=1e-12)
    assert str(dtype).removeprefix("torch.") in reason
    assert "L = 3" in reason


def test_the_tolerance_grows_with_depth(tmp_path):
    layers = {"0.weight": (8, 5), **{f"{i}.weight": (8, 8) for i in range(1, 5)}, "5.weight": (3, 8)}
    save_file({name: torch.ones(shape) for name, shape in layers.items()}, tmp_path / "deep.safetensors")
    allowed, _ = tolerance(plan_widening(tmp_path / "deep.safetensors", 2), torch.float64)
    assert allowed == pytest.approx(8 * 2**-53 * 6 * 16**0.5, rel=1e-12)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_a_right_model_agrees_in_every_type(dtype, saved, tmp_path):
    found = widen(saved("Llama-untied"), tmp_path / "wide", 3, verify=VerifyOptions(dtype=dtype)).verification
    assert found.agrees
    assert found.dtype == dtype
    assert torch.get_default_dtype() == torch.float32


def test_the_type_is_the_most_precise_one_that_fits(monkeypatch, mlp, tmp_path):
    source, model = mlp
    plan = plan_widening(source, 2)
    # 16 x 5 + 16 + 12 x 16 + 12 + 3 x 12 + 3 = 339 numbers.
    for free, expected in ((339 * 8 * 2, "float64"), (339 * 4 * 2 - 1, "float32")):
        monkeypatch.setattr(placement, "free_bytes", lambda _, free=free: free)
        found = widen(source, tmp_path / f"{expected}.safetensors", 2, plan=plan, verify=VerifyOptions(model=model))
        assert found.verification.dtype == expected
    monkeypatch.setattr(placement, "free_bytes", lambda _: 339 * 4 - 1)
    found = widen(source, tmp_path / "none.safetensors", 2, plan=plan, verify=VerifyOptions(model=model))
    assert found.verification is None
    assert "free" in found.skipped


@pytest.mark.parametrize("case", ["Llama-tied", "Mixtral-untied", "T5-tied"])
def test_weights_that_are_read_from_disk(case, saved, tmp_path):
    here = widen(saved(case), tmp_path / "wide", 3, verify=EXACT).verification
    found = verify(tmp_path / "wide", saved(case), options=VerifyOptions(device="disk"))
    assert found.agrees
    assert found.device == "cpu, weights read from disk"
    assert found.num_modules == here.num_modules
    assert [c.what for c in found.comparisons] == [c.what for c in here.comparisons]
    assert [c.max_abs for c in found.comparisons] == pytest.approx([c.max_abs for c in here.comparisons], abs=1e-12)
    weights = load_file(tmp_path / "wide" / "model.safetensors")
    name = next(name for name, value in weights.items() if value.dim() == 2 and "embed" not in name)
    weights[name][0, 0] += 1
    save_file(weights, tmp_path / "wide" / "model.safetensors", metadata={"format": "pt"})
    assert not verify(tmp_path / "wide", saved(case), options=VerifyOptions(device="disk")).agrees


def test_a_single_file_is_read_from_disk_for_as_long_as_its_model_lives(saved, tmp_path):
    source = saved("Llama-untied") / "model.safetensors"
    found = widen(source, tmp_path / "w.safetensors", 2, verify=VerifyOptions(device="disk")).verification
    assert found.agrees


def test_what_does_not_fit_is_read_from_disk(monkeypatch, saved, tmp_path):
    source = saved("Llama-untied")
    narrow, wide = (8 * 1.2 * parameters for parameters in plan_widening(source, 2).num_parameters)
    for free, narrow_over in ((wide / 2.5, None), (narrow / 2, "disk")):
        monkeypatch.setattr(placement, "free_bytes", lambda _, free=free: free)
        placed = placement.place(plan_widening(source, 2), "auto", "auto", can_offload=True)
        assert (placed.narrow.over, placed.wide.over) == (narrow_over, "disk")
        assert placed.dtype == torch.float64
        with pytest.raises(CannotVerify, match="GB free"):
            placement.place(plan_widening(source, 2), "auto", "cpu", can_offload=True)
    found = widen(source, tmp_path / "wide", 2).verification
    assert found.agrees
    assert found.device == "cpu, weights read from disk"
    assert found.dtype == "float64"


def test_a_model_whose_weights_are_used_by_other_modules_says_that_it_cannot_be_on_disk(saved, tmp_path):
    found = widen(saved("SiglipVision-head"), tmp_path / "wide", 2, verify=VerifyOptions(device="disk"))
    assert found.verification is None
    assert "not on one device" in found.skipped


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (VerifyOptions(device="spread"), "there is none"),
        (VerifyOptions(dtype="float12"), "float12"),
        (VerifyOptions(device="abacus"), "abacus"),
        (VerifyOptions(dtype="int32"), "int32"),
    ],
)
def test_options_that_cannot_be_met_are_named(options, says, saved, tmp_path):
    with pytest.raises(VerifyError, match=says):
        widen(saved("Llama-tied"), tmp_path / "wide", 2, verify=options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("device", ["disk", "spread"])
def test_training_is_on_one_device(device):
    with pytest.raises(VerifyError, match="one device"):
        placement.one_device(device)


# Results --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("narrow", "wide", "max_abs", "max_rel"),
    [
        ([1.0, -4.0], [1.0, -4.0], 0.0, 0.0),
        ([1.0, -4.0], [1.5, -4.0], 0.5, 0.125),
        ([0.0, 0.0], [0.0, 0.0], 0.0, 0.0),
        ([0.0], [1e-30], 1e-30, math.inf),
        ([1.0, math.nan], [1.0, 2.0], math.inf, math.inf),
        ([1.0, 2.0], [math.nan, 2.0], math.inf, math.inf),
        ([math.nan], [math.nan], math.inf, math.inf),
        ([math.inf], [math.inf], math.inf, math.inf),
        ([1.0], [1.0, 1.0], math.inf, math.inf),
        ([], [], math.inf, math.inf),
    ],
)
def test_compare(narrow, wide, max_abs, max_rel):
    narrow, wide = (torch.tensor(values, dtype=torch.float64) for values in (narrow, wide))
    assert compare("x", narrow, wide) == Comparison("x", max_abs, max_rel)


def result(*errors, first=None, allowed=1e-3):
    comparisons = tuple(Comparison(f"output {i}", error, error) for i, error in enumerate(errors))
    return Verification(comparisons, 1, first, first, allowed, "because", "float64", "cpu", "numbers")


@pytest.mark.parametrize(
    ("found", "agrees"),
    [
        (result(1e-4, 1e-3), True),
        (result(1e-4, 2e-3), False),
        (result(1e-4, math.nan), False),
        (result(math.nan, 1e-4), False),
        (result(math.inf), False),
        (result(1e-4, first=Comparison("layer", 1.0, 1.0)), False),
    ],
)
def test_agreement_is_every_output_and_every_module_within_the_tolerance(found, agrees):
    assert found.agrees is agrees
    assert json.loads(json.dumps(found.as_record(), allow_nan=False))["agrees"] is agrees


def test_the_largest_difference_does_not_lose_a_nan():
    assert math.isnan(result(math.nan, 1.0).max_rel)
    assert math.isnan(result(1.0, math.nan).max_rel)
    assert result(1.0, 2.0, 0.5).max_rel == 2.0


# Activations ----------------------------------------------------------------------------------


def test_recording_takes_the_first_output_of_each_named_module_in_order_and_lets_go():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    with recording(model, {"2", "0"}) as recorder:
        first = model(torch.ones(1, 2))
        model(torch.zeros(1, 2))
    assert list(recorder.outputs) == ["0", "2"]
    assert torch.equal(recorder.outputs["2"], first)
    recorder.outputs.clear()
    model(torch.ones(1, 2))
    assert not recorder.outputs


def test_recording_lets_go_after_an_error():
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(RuntimeError), recording(model, {"0"}):
        model(torch.ones(1, 3))
    assert not model[0]._forward_hooks


def test_names_of_a_base_model_are_found_below_the_prefix_of_the_head():
    model = nn.Module()
    model.base_model_prefix = "transformer"
    known = {"transformer.wte": 1, "lm_head": 2}
    assert name_in(model, "wte", known) == "transformer.wte"
    assert name_in(model, "lm_head", known) == "lm_head"
    assert name_in(model, "wpe", known) is None


# Inputs ---------------------------------------------------------------------------------------


class Stub(nn.Module):
    """As much of a transformers model as making inputs asks for."""

    def __init__(self, main_input_name, **config):
        super().__init__()
        self.main_input_name = main_input_name
        self.config = type("Config", (), {**config, "get_text_config": lambda self: self})()


def test_tokens_are_of_the_vocabulary_and_use_it():
    inputs = reference_inputs(Stub("input_ids", vocab_size=5), torch.Generator().manual_seed(0))
    assert set(inputs.keywords["input_ids"].unique().tolist()) == {0, 1, 2, 3, 4}
    assert set(inputs.keywords) == {"input_ids"}


def test_an_encoder_with_a_decoder_gets_tokens_for_both():
    stub = Stub("input_ids", vocab_size=5, is_encoder_decoder=True)
    inputs = reference_inputs(stub, torch.Generator().manual_seed(0))
    assert set(inputs.keywords) == {"input_ids", "decoder_input_ids"}


@pytest.mark.parametrize(("size", "shape"), [(8, (1, 8, 8)), ((6, 10), (1, 6, 10))])
def test_images_have_the_size_of_the_config(size, shape):
    stub = Stub("pixel_values", image_size=size, num_channels=1)
    assert reference_inputs(stub, torch.Generator()).keywords["pixel_values"].shape[1:] == shape


def test_inputs_of_another_kind_are_a_reason_not_to_verify():
    with pytest.raises(CannotVerify, match=r"input_values.*--model"):
        reference_inputs(Stub("input_values"), torch.Generator())


def test_only_numbers_take_the_type_of_the_model():
    inputs = Inputs((torch.ones(1), torch.ones(1, dtype=torch.int64), "a"), {"x": torch.ones(1), "flag": True}, "")
    moved = inputs.to(torch.device("cpu"), torch.float64)
    assert [getattr(value, "dtype", value) for value in moved.arguments] == [torch.float64, torch.int64, "a"]
    assert moved.keywords["x"].dtype == torch.float64
    assert moved.keywords["flag"] is True


def test_a_user_model_gets_numbers_by_its_first_weight_or_tokens_by_its_config(mlp):
    plan, generator = plan_widening(mlp[0], 2), torch.Generator().manual_seed(0)
    (values,) = user_inputs(sys, {}, plan, generator).arguments
    assert values.shape[1:] == (5,)
    assert values.is_floating_point()
    (tokens,) = user_inputs(sys, {"vocab_size": 3}, plan, generator).arguments
    assert set(tokens.unique().tolist()) == {0, 1, 2}


@pytest.mark.parametrize(
    ("returned", "arguments", "keywords"),
    [("1", (1,), {}), ("(1, 2)", (1, 2), {}), ("{'x': 1}", (), {"x": 1})],
)
def test_inputs_of_the_users_module_are_passed_as_it_returns_them(returned, arguments, keywords, mlp, tmp_path):
    (tmp_path / "own.py").write_text(f"{MLP}\ndef inputs(config, generator):\n    return {returned}\n")
    module, _ = load_user_module(f"{tmp_path / 'own.py'}:build")
    found = user_inputs(module, {}, plan_widening(mlp[0], 2), torch.Generator())
    assert (found.arguments, dict(found.keywords)) == (arguments, keywords)


def test_inputs_of_the_users_module_reach_both_models(tmp_path):
    (tmp_path / "own.py").write_text(
        f"{MLP}\nimport torch\ndef inputs(config, generator):\n"
        "    assert 'shapes' in config\n"
        "    return torch.zeros(3, 5, dtype=torch.float64)\n"
    )
    tensors = {**mlp_tensors(), "4.bias": torch.zeros(3), "2.bias": torch.zeros(6), "0.bias": torch.zeros(8)}
    save_file(tensors, tmp_path / "zero.safetensors")
    options = VerifyOptions(dtype="float64", model=f"{tmp_path / 'own.py'}:build")
    found = widen(tmp_path / "zero.safetensors", tmp_path / "wide.safetensors", 2, verify=options).verification
    assert found.inputs == "inputs of the user's module"
    assert found.comparisons[0] == Comparison("logits (all zero, so nothing is compared)", 0.0, 0.0)


# Models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("net.py", "names no function"),
        ("{folder}/net.py:", "names no function"),
        (":build", "names no function"),
        ("{folder}/net.py:make", "no function `make`"),
        ("{folder}/net.py:nn", "no function `nn`"),
        ("{folder}/absent.py:build", "absent.py"),
        ("{folder}/broken.py:build", "broken.py"),
        ("{folder}/needy.py:build", "no_such_package"),
        ("no_such_package.module:build", "no_such_package"),
        ("./net:build", "net"),
    ],
)
def test_a_model_option_that_leads_nowhere_is_named(reference, says, tmp_path):
    (tmp_path / "net.py").write_text(MLP)
    (tmp_path / "broken.py").write_text("def build(:\n")
    (tmp_path / "needy.py").write_text("import no_such_package\n")
    with pytest.raises(VerifyError, match=says):
        load_user_module(reference.format(folder=tmp_path))


def test_a_model_option_takes_a_module_by_its_dotted_name(monkeypatch, tmp_path):
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "net.py").write_text(MLP)
    monkeypatch.syspath_prepend(tmp_path)
    module, build = load_user_module("my_package.net:build")
    assert build is module.build


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return {}", "dict"),
        ("return None", "NoneType"),
        ("return nn.Linear(5, 8)", "does not fit"),
        ("model = build0(config); model[0] = nn.Linear(5, 9); return model", "does not fit"),
        ("model = build0(config); model.extra = nn.Linear(2, 2); return model", "extra"),
        ("return build0(config)[:3]", "4"),
    ],
)
def test_a_model_that_does_not_fit_the_checkpoint_is_an_error(body, says, mlp, tmp_path):
    (tmp_path / "own.py").write_text(f"{MLP.replace('build', 'build0')}\ndef build(config):\n    {body}\n")
    options = VerifyOptions(model=f"{tmp_path / 'own.py'}:build")
    with pytest.raises(VerifyError, match=says):
        widen(mlp[0], tmp_path / "wide.safetensors", 2, verify=options)
    assert not (tmp_path / "wide.safetensors").exists()


def test_a_model_that_does_not_run_is_an_error(mlp, tmp_path):
    (tmp_path / "own.py").write_text(
        f"{MLP}\nimport torch\ndef inputs(config, generator):\n    return torch.ones(2, 7)\n"
    )
    with pytest.raises(VerifyError, match="cannot be run"):
        widen(mlp[0], tmp_path / "wide.safetensors", 2, verify=VerifyOptions(model=f"{tmp_path / 'own.py'}:build"))
    assert torch.get_default_dtype() == torch.float32


def test_a_user_model_is_given_the_config_where_there_is_one(tmp_path):
    source = save_mlp(tmp_path / "mlp.safetensors")
    (tmp_path / "config.json").write_text('{"activation": "tanh"}')
    seen = []

    def build(config):
        seen.append(config)
        return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))

    model = build_user_model(build, open_checkpoint(source), torch.float64)
    assert seen == [{"activation": "tanh"}]
    assert not model.training
    assert torch.equal(model[2].weight, mlp_tensors()["2.weight"].double())


def test_a_user_model_may_have_buffers_that_the_checkpoint_lacks(tmp_path):
    def build(_config):
        model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
        model.register_buffer("mask", torch.ones(3))
        return model

    build_user_model(build, open_checkpoint(save_mlp(tmp_path / "mlp.safetensors")), torch.float64)


def test_transformers_must_not_invent_weights(tmp_path):
    source = save_model(tmp_path / "narrow")
    tensors = load_file(source / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(VerifyError, match="up_proj"):
        build_reference_model(open_checkpoint(source), torch.float64)


def change_config(directory, **values):
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_a_config_that_transformers_refuses_is_an_error(tmp_path):
    source = save_model(tmp_path / "narrow")
    change_config(source, num_hidden_layers="two")
    with pytest.raises(VerifyError, match="narrow"):
        build_reference_model(open_checkpoint(source), torch.float64)


# Where it is not possible ---------------------------------------------------------------------


def is_skipped(source, output, says, **arguments):
    """Widen what cannot be verified: it is published all the same, and the reason told."""
    widened = widen(source, output, 2, **arguments)
    assert widened.verification is None
    assert says in widened.skipped
    assert widened.record["verification"] is None
    assert output.exists()


def test_without_transformers_it_is_skipped(monkeypatch, saved, tmp_path):
    source = saved("Llama-tied")
    monkeypatch.setitem(sys.modules, "transformers", None)
    is_skipped(source, tmp_path / "wide", "pip install 'mupscale[hf]'")


def test_without_config_it_is_skipped(tmp_path):
    is_skipped(save_mlp(tmp_path / "mlp.safetensors"), tmp_path / "wide.safetensors", "--model")


def test_with_an_architecture_that_transformers_lacks_it_is_skipped(tmp_path):
    source = save_model(tmp_path / "narrow")
    change_config(source, architectures=["LlamaForTelepathy"])
    is_skipped(source, tmp_path / "wide", "LlamaForTelepathy")


def test_when_it_was_not_asked_for_it_is_skipped(saved, tmp_path):
    is_skipped(saved("Llama-tied"), tmp_path / "wide", "not asked for", verify=False)


def test_an_own_model_needs_no_transformers(monkeypatch, mlp, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)
    options = VerifyOptions(model=mlp[1])
    assert widen(mlp[0], tmp_path / "wide.safetensors", 2, verify=options).verification.agrees

"""Comparing models: the outputs that are compared, and the mistakes that are found."""

import json
import math
import sys
from fractions import Fraction

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import change_config, save_mlp, save_model
from mupscale_cli.checkpoints.reading import open_checkpoint
from mupscale_cli.tasks.planning import plan_widening
from mupscale_cli.tasks.verify import verify
from mupscale_cli.tasks.widen import widen
from mupscale_cli.verification import running
from mupscale_cli.verification.comparing import verify_checkpoints
from mupscale_cli.verification.models import build_reference_model
from mupscale_cli.verification.options import VerifyOptions
from mupscale_cli.verification.result import CannotVerify

EXACT = VerifyOptions(dtype="float64")


def verified(source, wide):
    """Verify a pair of checkpoints with the plan for factor 2."""
    return verify_checkpoints(open_checkpoint(source), open_checkpoint(wide), plan_widening(source, factor=2), EXACT)


# Case, recipe, rules with one mistake, axes (None: all), and the first module whose output contradicts the recipe
# (None if only the logits differ).
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
    # The logits of the tied readout are not divided.
    ("Llama-tied", "llama", {"{prefix}norm.weight": "embed"}, None, None),
    # The queries follow this rule, but meet the keys of other heads.
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
    # The queries follow these rules, but attention divides by the root of the new head_dim.
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
    """Write a recipe that differs from a built-in one in some rules."""
    file = tmp_path / "wrong.yaml"
    lines = (f'  "{pattern}": "{layout}"\n' for pattern, layout in rules.items())
    file.write_text(f"extends: {recipe}\ntensors:\n{''.join(lines)}")
    return file


@pytest.mark.parametrize(("dtype", "factor"), [(torch.float32, 2), (torch.bfloat16, 3)], ids=str)
@pytest.mark.parametrize(
    ("case", "recipe", "rules", "axes", "module"),
    [pytest.param(*row, id=f"{row[0]}: {next(iter(row[2].items()))}") for row in WRONG_RULES],
)
def test_a_wrong_rule_is_found_and_nothing_is_written(
    case, recipe, rules, axes, module, dtype, factor, saved, tmp_path
):
    source = saved(case, dtype=dtype)
    file = wrong_recipe(tmp_path, recipe, rules)
    factors = dict.fromkeys(axes or (), factor)
    found = widen(source, tmp_path / "wide", None if axes else factor, factors, recipe=file).verification
    assert not found.agrees
    assert found.max_rel > 1000 * found.tolerance
    assert (found.first_difference and found.first_difference.what) == module
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.yaml"]


def test_a_wrong_rule_is_found_in_a_user_defined_model(mlp, tmp_path):
    source, model = mlp
    file = wrong_recipe(tmp_path, "mlp", {"{prefix}{last}.weight": "., hidden"})
    found = widen(source, tmp_path / "wide.safetensors", 2, recipe=file, model=model).verification
    assert not found.agrees
    assert found.first_difference.what == "4"
    assert not (tmp_path / "wide.safetensors").exists()


def test_a_wrong_rule_is_found_below_the_precision_of_float32(saved, tmp_path):
    """An exponent that is off by 1e-6 causes smaller changes than rounding in float32."""
    file = wrong_recipe(tmp_path, "gemma", {"{prefix}embed_tokens.weight": "., embed | embed^-0.500001"})
    found = widen(saved("Gemma-untied"), tmp_path / "wide", 2, recipe=file, dtype="float64").verification
    assert not found.agrees
    assert found.first_difference.what == "model.embed_tokens"


@pytest.fixture(scope="module")
def wide_llama(saved, tmp_path_factory):
    """A correct widening of `Llama-untied` by 2, and a copy to damage."""
    folder = tmp_path_factory.mktemp("wide")
    for name in ("correct", "damaged"):
        widen(saved("Llama-untied"), folder / name, 2, verify=False)
    return folder / "correct", folder / "damaged"


def damaged(wide_llama, name, change):
    """Change one tensor of the copy, and return the copy."""
    correct, directory = wide_llama
    tensors = load_file(correct / "model.safetensors")
    change(tensors[name])
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def flip_last_bits(tensor):
    """Change the first column, or the first element, by one unit in the last place."""
    column = tensor[..., 0]
    column.copy_(torch.nextafter(column, torch.full_like(column, math.inf)))


LAYER_TENSORS = [
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
    *(f"model.layers.1.{name}" for name in LAYER_TENSORS),
    "model.norm.weight",
    "lm_head.weight",
]


@pytest.mark.parametrize("name", ALL_TENSORS)
def test_a_change_of_a_last_bit_is_found_in_its_module(name, wide_llama, saved):
    wide = damaged(wide_llama, name, flip_last_bits)
    found = verified(saved("Llama-untied"), wide)
    assert not found.agrees
    assert found.first_difference.what == name.rpartition(".")[0]


def test_reordered_rows_are_found(wide_llama, saved):
    """Copies that are concatenated instead of interleaved: every row exists, but in another position."""

    def permute(tensor):
        heads = tensor.view(4, 8, -1)  # two kv heads, two copies of each
        heads.copy_(heads[[0, 2, 1, 3]].clone())

    wide = damaged(wide_llama, "model.layers.0.self_attn.v_proj.weight", permute)
    found = verified(saved("Llama-untied"), wide)
    assert not found.agrees
    assert found.first_difference.what == "model.layers.0.self_attn.v_proj"


def test_the_correct_file_agrees(wide_llama, saved):
    assert verified(saved("Llama-untied"), wide_llama[0]).agrees


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_nonfinite_value_is_a_difference(value, wide_llama, saved):
    wide = damaged(wide_llama, "model.layers.1.mlp.up_proj.bias", lambda tensor: tensor[:1].fill_(value))
    found = verified(saved("Llama-untied"), wide)
    assert not found.agrees
    assert found.first_difference.what == "model.layers.1.mlp.up_proj"
    assert found.max_rel == math.inf
    json.dumps(found.as_record(), allow_nan=False)


def test_nan_in_both_models_is_not_agreement(tmp_path):
    source = save_model(tmp_path / "narrow")
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.0.input_layernorm.weight"][0] = math.nan
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    widen(source, tmp_path / "wide", 2, verify=False, allow_nonfinite=True)
    with pytest.raises(CannotVerify, match="not finite"):
        verify(tmp_path / "wide", source, only=["function"])
    found = verify(tmp_path / "wide", source)
    assert found.agrees  # the copied NaN is a weight like any other
    assert "not finite" in str(found.incomplete)


def test_models_that_generate_are_compared_with_padding_and_cache(saved, tmp_path):
    found = widen(saved("Qwen2-tied"), tmp_path / "wide", 2, dtype="float64").verification
    what = [comparison.what for comparison in found.comparisons]
    assert {"logits", "logits of a left-padded batch", "logits of cached generation"} < set(what)
    assert any("`model.norm`" in name for name in what)


def without_padding(_query, mask):
    """Ignore padding: the mask of the first sequence, which has none, is the causal mask."""
    return mask[:1].expand_as(mask)


def forgetful(query, mask):
    """Ignore the oldest key when there is a single query, as there is with a cache."""
    return mask.index_fill(-1, torch.tensor(0), torch.finfo(mask.dtype).min) if query.shape[2] == 1 else mask


@pytest.mark.parametrize(
    ("change", "differing"),
    [
        (without_padding, {"logits of a left-padded batch", "logits of cached generation"}),
        (forgetful, {"logits of cached generation"}),
    ],
)
def test_mistakes_that_need_padding_or_a_cache_are_found(change, differing, monkeypatch, saved, tmp_path):
    import transformers

    attend = transformers.models.llama.modeling_llama.eager_attention_forward

    def careless(module, query, key, value, attention_mask, **rest):
        is_wide = query.shape[1] > 4
        return attend(module, query, key, value, change(query, attention_mask) if is_wide else attention_mask, **rest)

    monkeypatch.setattr(transformers.models.llama.modeling_llama, "eager_attention_forward", careless)
    found = widen(saved("Llama-tied"), tmp_path / "wide", 2, dtype="float64").verification
    assert not found.agrees
    differing = {*differing, "final hidden states (`model.norm`)"}  # modules are compared in every pass
    assert {c.what for c in found.comparisons if not c.max_rel <= found.tolerance} == differing


def test_generation_takes_several_steps_and_follows_given_tokens(saved):
    """Both models follow the same tokens, so a tie between two logits cannot separate them."""
    model = build_reference_model(open_checkpoint(saved("Llama-untied")), torch.float64)
    tokens, mask = torch.tensor([[3, 4, 5]]), torch.ones(1, 3, dtype=torch.int64)
    generated = running._generate(model, tokens, mask, 8)
    logits, greedy = generated.logits, generated.tokens
    assert generated.prefill.logits.shape[1] == 3  # of every token of the prompt
    other = greedy.clone()
    other[0, 3:] = torch.arange(greedy.shape[1] - 3) + 7
    following = running._generate(model, tokens, mask, 8, other)
    forced_logits, forced = following.logits, following.tokens
    assert torch.equal(forced, other)
    assert torch.equal(logits[:, 0], forced_logits[:, 0])
    assert logits.shape[1] > 2
    steps = model(input_ids=forced, attention_mask=torch.ones_like(forced)).logits[:, 2:-1]
    torch.testing.assert_close(forced_logits.double(), steps, rtol=0, atol=1e-4)  # rotary tables are float32 here


def test_image_models_are_compared_by_logits_only(saved, tmp_path):
    found = widen(saved("ResNet-basic"), tmp_path / "wide", 2, dtype="float64").verification
    assert not [c.what for c in found.comparisons if "padded" in c.what or "generation" in c.what]
    assert found.comparisons[0].what == "logits"
    assert "images" in found.inputs


def test_the_seed_determines_the_inputs(wide_llama, saved):
    source, wide = open_checkpoint(saved("Llama-untied")), open_checkpoint(wide_llama[0])
    plan = plan_widening(source.path, factor=2)
    one, again, other = (
        verify_checkpoints(source, wide, plan, VerifyOptions(dtype="float64", seed=seed)) for seed in (0, 0, 1)
    )
    assert one == again
    assert one.comparisons != other.comparisons
    assert other.agrees


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
        ("GPT2-tied", Fraction(3, 2), 15),  # gains by sqrt(2/3), and means in what writes to the stream
        ("ViT-classifier", Fraction(3, 2), 17),
    ],
)
def test_rounding_is_measured_and_hides_nothing(case, factor, rounded, saved, tmp_path):
    found = widen(saved(case, dtype=torch.bfloat16), tmp_path / "wide", factor, dtype="float64").verification
    assert found.agrees
    assert found.max_rel < 1e-12
    assert found.rounded_tensors == rounded
    if rounded:
        # Rounding to bfloat16 changes each element, and the logits of a small model, by up to about 2^-9.
        assert 1e-6 < found.rounding.max_rel < 1
    else:
        assert found.rounding is None


@pytest.mark.parametrize("change", ["one unit in the last place", "zeros", "the first unit"])
def test_a_wrong_mean_is_a_difference(change, saved, tmp_path):
    """Means are rounded, and the allowance for that is for the bytes of the planned means only."""
    source, wide = saved("GPT2-tied", dtype=torch.bfloat16), tmp_path / "wide"
    assert widen(source, wide, Fraction(3, 2), dtype="float64").verification.agrees
    tensors = load_file(wide / "model.safetensors")
    rows = tensors["transformer.h.1.mlp.c_proj.bias"]
    fresh = rows[32:]
    if change == "one unit in the last place":
        fresh.view(torch.int16).bitwise_xor_(1)
    else:
        fresh.copy_(torch.zeros(16) if change == "zeros" else rows[:1])
    save_file(tensors, wide / "model.safetensors")
    found = verify(wide, dtype="float64", only=["function"])
    assert not found.agrees
    assert found.function.first_difference.what == "transformer.ln_f"


def check_skipped(source, output, reason, **arguments):
    """Widen a checkpoint that cannot be verified; check that it is written and that the reason is given."""
    widened = widen(source, output, 2, **arguments)
    assert widened.verification is None
    assert reason in widened.skipped
    assert widened.record["verification"] is None
    assert output.exists()


def test_without_transformers_it_is_skipped(monkeypatch, saved, tmp_path):
    source = saved("Llama-tied")
    monkeypatch.setitem(sys.modules, "transformers", None)
    check_skipped(source, tmp_path / "wide", "install the extra `hf`")


def test_without_config_it_is_skipped(tmp_path):
    check_skipped(save_mlp(tmp_path / "mlp.safetensors"), tmp_path / "wide.safetensors", "--model")


def test_with_an_architecture_that_transformers_lacks_it_is_skipped(tmp_path):
    source = save_model(tmp_path / "narrow")
    change_config(source, architectures=["LlamaForTelepathy"])
    check_skipped(source, tmp_path / "wide", "LlamaForTelepathy")


def test_with_no_verify_it_is_skipped(saved, tmp_path):
    check_skipped(saved("Llama-tied"), tmp_path / "wide", "disabled by", verify=False)


def test_a_user_defined_model_does_not_need_transformers(monkeypatch, mlp, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert widen(mlp[0], tmp_path / "wide.safetensors", 2, model=mlp[1]).verification.agrees

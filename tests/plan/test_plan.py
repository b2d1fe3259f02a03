"""Plans made from headers, compared with values that were worked out by hand."""

import pytest

from mupscale_cli.architecture.loading import load_recipe
from mupscale_cli.dtypes import TensorSpec
from mupscale_cli.errors import ConfigError, PlanError, RecipeError
from mupscale_cli.plan import Request, make_plan, with_noise
from mupscale_cli.plan.perturbation import Perturbation

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 1,
    "vocab_size": 10,
    "tie_word_embeddings": True,
}
LAYER = "model.layers.0."
SHAPES = {
    "model.embed_tokens.weight": (10, 8),
    f"{LAYER}input_layernorm.weight": (8,),
    f"{LAYER}self_attn.q_proj.weight": (8, 8),
    f"{LAYER}self_attn.k_proj.weight": (4, 8),
    f"{LAYER}self_attn.v_proj.weight": (4, 8),
    f"{LAYER}self_attn.o_proj.weight": (8, 8),
    f"{LAYER}post_attention_layernorm.weight": (8,),
    f"{LAYER}mlp.gate_proj.weight": (12, 8),
    f"{LAYER}mlp.up_proj.weight": (12, 8),
    f"{LAYER}mlp.down_proj.weight": (8, 12),
    "model.norm.weight": (8,),
}


def specs(shapes=SHAPES, dtype="F32"):
    return [TensorSpec(name, dtype, shape) for name, shape in shapes.items()]


def llama(factor=None, axes=None, config=CONFIG, shapes=SHAPES, **options):
    recipe = load_recipe("llama")
    return make_plan(recipe, specs(shapes), config, Request(factor, axes or {}), **options)


def test_coefficients_multiplicities_and_shapes_of_llama():
    """The factors are embed 2, kv 3, g 5 and ffn 7; every number below is a product of these."""
    config = {**CONFIG, "model_type": "mistral"}  # whose hidden_size may be any
    plan = llama(axes={"embed": 2, "kv": 3, "g": 5, "ffn": 7}, config=config)
    found = {t.target.name: (t.coefficient, t.multiplicity, t.target.shape) for t in plan.tensors}
    heads = 3 * 5
    assert found == {
        "model.embed_tokens.weight": (1, 2, (10, 16)),
        f"{LAYER}input_layernorm.weight": (1, 2, (16,)),
        f"{LAYER}self_attn.q_proj.weight": (1 / 2, 2 * heads, (8 * heads, 16)),
        f"{LAYER}self_attn.k_proj.weight": (1 / 2, 2 * 3, (4 * 3, 16)),
        f"{LAYER}self_attn.v_proj.weight": (1 / 2, 2 * 3, (4 * 3, 16)),
        f"{LAYER}self_attn.o_proj.weight": (1 / heads, 2 * heads, (16, 8 * heads)),
        f"{LAYER}post_attention_layernorm.weight": (1, 2, (16,)),
        f"{LAYER}mlp.gate_proj.weight": (1 / 2, 2 * 7, (84, 16)),
        f"{LAYER}mlp.up_proj.weight": (1 / 2, 2 * 7, (84, 16)),
        f"{LAYER}mlp.down_proj.weight": (1 / 7, 2 * 7, (16, 84)),
        "model.norm.weight": (1 / 2, 2, (16,)),
    }


def test_an_untied_readout_is_scaled_itself():
    shapes = {**SHAPES, "lm_head.weight": (10, 8)}
    plan = llama(2, config={**CONFIG, "tie_word_embeddings": False}, shapes=shapes)
    found = {t.target.name: t.coefficient for t in plan.tensors}
    assert (found["model.norm.weight"], found["lm_head.weight"]) == (1, 1 / 2)


def test_the_config_is_widened_and_keeps_head_dim():
    plan = llama(3, {"g": 2})
    changes = {change.key: (change.before, change.after) for change in plan.config_changes}
    assert changes == {
        "hidden_size": (8, 24),
        "num_attention_heads": (4, 24),
        "num_key_value_heads": (2, 6),
        "intermediate_size": (12, 36),
        "head_dim": (None, 2),
    }
    assert plan.config == {**CONFIG, **{key: after for key, (_, after) in changes.items()}}


def test_counts():
    plan = llama(2)
    narrow = sum(a * (b or 1) for a, b in ((*shape, None)[:2] for shape in SHAPES.values()))
    assert plan.num_parameters[0] == narrow
    assert plan.num_bytes == 4 * plan.num_parameters[1]


def test_splits_are_exact_and_scales_other_than_powers_of_two_are_rounded():
    assert [tensor.target.name for tensor in llama(3).rounded] == ["model.norm.weight"]
    assert llama(2).rounded == ()


def test_shards_contain_every_tensor_once_and_respect_the_maximum_size():
    plan = llama(2, max_shard_bytes=2000)
    assert len(plan.shards) > 2
    assert all(shard.num_bytes <= 2000 or len(shard.tensors) == 1 for shard in plan.shards)
    names = [tensor.target.name for shard in plan.shards for tensor in shard.tensors]
    assert sorted(names) == sorted(SHAPES)
    assert [shard.file for shard in llama(2, max_shard_bytes=None).shards] == ["model.safetensors"]


def test_shapes_that_contradict_the_config_are_refused():
    with pytest.raises(
        RecipeError, match=r"up_proj\.weight` has shape \(13, 8\).*should have size 12 instead of 13"
    ) as error:
        llama(2, shapes={**SHAPES, f"{LAYER}mlp.up_proj.weight": (13, 8)})
    assert "ffn = 12" in error.value.hint


@pytest.mark.parametrize("dtype", ["F8_E4M3", "I8", "U8"])
def test_packed_weights_are_refused(dtype):
    recipe = load_recipe("llama")
    with pytest.raises(PlanError, match=dtype):
        make_plan(recipe, specs(dtype=dtype), CONFIG, Request(2))


def test_only_tensors_that_copy_units_get_noise_and_only_a_measured_one_has_a_size():
    plan = llama(None, {"ffn": 2}, perturbation=Perturbation(0.1))
    noisy = {tensor.target.name for tensor in plan.tensors if tensor.noise is not None}
    assert noisy == {f"{LAYER}mlp.{name}_proj.weight" for name in ("gate", "up", "down")}
    up, down = (f"{LAYER}mlp.{name}_proj.weight" for name in ("up", "down"))
    measured = {t.target.name: t.noise.std for t in with_noise(plan, {up: 0.25}).tensors if t.noise is not None}
    assert measured[up] == 0.25
    assert measured[down] is None
    assert with_noise(plan, {}) is plan


# Features of the language --------------------------------------------------------------------


@pytest.fixture
def small(tmp_path):
    def make(tensors, config, shapes, axes, *, more_axes=""):
        file = tmp_path / "r.yaml"
        experts = ", experts?: e" if more_axes else ""
        text = f"axes: {{a: n{more_axes}}}\nwiden: [a]\nconfig: {{n: a{experts}}}\ntensors:\n  {tensors}\n"
        file.write_text(text)
        recipe = load_recipe(file)
        return make_plan(recipe, specs(shapes), config, Request(axes=axes))

    return make


def test_an_axis_in_the_name_adds_tensors_and_may_be_summed(small):
    plan = small(
        '"x.{/e}.w": "a"', {"n": 2, "experts": 2}, {"x.0.w": (2,), "x.1.w": (2,)}, {"e": 3}, more_axes=", e: experts"
    )
    made = [(t.source.name, t.target.name, t.piece, t.coefficient, t.multiplicity) for t in plan.tensors]
    assert made == [(f"x.{e}.w", f"x.{3 * e + copy}.w", copy, 1 / 3, 3) for e in range(2) for copy in range(3)]
    assert plan.config["experts"] == 6


def test_segments_can_have_different_scales(small):
    plan = small('w: "[a@a^-1 + 2 a + 1]"', {"n": 2}, {"w": (7,)}, {"a": 4})
    (tensor,) = plan.tensors
    assert tensor.target.shape == (8 + 16 + 1,)
    assert tensor.parts == ((1 / 4, 4), (1, 4), (1, 1))
    assert tensor.coefficient is None


def test_the_first_alternative_with_a_true_condition_is_chosen(small):
    text = 'w: [{when: parallel, dims: "a | a^-1"}, "a"]'
    (tensor,) = small(text, {"n": 2, "parallel": True}, {"w": (2,)}, {"a": 2}).tensors
    assert tensor.coefficient == 1 / 2
    (tensor,) = small(text, {"n": 2, "parallel": False}, {"w": (2,)}, {"a": 2}).tensors
    assert tensor.coefficient == 1


def test_tensors_can_be_kept_or_omitted(small):
    shapes = {"w": (2,), "kept": (5,), "buffer": (9,)}
    plan = small("w: a\n  kept: keep\n  buffer: omit", {"n": 2}, shapes, {"a": 2})
    assert {tensor.target.name: tensor.target.shape for tensor in plan.tensors} == {"w": (4,), "kept": (5,)}
    assert plan.omitted == ("buffer",)


def test_a_config_that_keeps_the_old_size_is_an_error(small):
    with pytest.raises(
        ConfigError, match="the axis `e` has size 2 in the widened config, but 4 in the widened tensors"
    ):
        small(
            '"x.{e}.w": "a"', {"n": 2, "groups": 2}, {"x.0.w": (2,), "x.1.w": (2,)}, {"e": 2}, more_axes=", e: groups"
        )


def test_a_missing_config_key_is_an_error(small):
    with pytest.raises(RecipeError, match="lacks a key that gives the size of the axis `a`"):
        small("w: a", {}, {"w": (2,)}, {"a": 2})


HALVES = """
match: {model_type: [halves]}
axes: {a: n, m: {size: varies}, e: {size: 2, about: experts of one kind}}
widen: [a]
config: {n: a}
parameters:
  "experts.{e}.{gate,up}": {name: [left, right], dims: "e, [m + m], /a"}
tensors:
  "gate": "e, /a"
  "experts.*.{gate,up}": "m, /a"
"""


def test_parameters_may_be_equal_runs_of_tensors(tmp_path):
    (tmp_path / "halves.yaml").write_text(HALVES)
    recipe = load_recipe(tmp_path / "halves.yaml")
    widths = {9: 3, 2: 4, 10: 3, 1: 4}  # the order is that of the numbers
    specs = [TensorSpec(f"experts.{i}.{k}", "F32", (m, 5)) for i, m in widths.items() for k in ("gate", "up")]
    specs.append(TensorSpec("gate", "F32", (2, 5)))
    plan = make_plan(recipe, specs, {"n": 5}, Request(axes={"a": 2, "m": 3}))
    shapes = {tensor.source.name: (tensor.source.shape, tensor.target.shape) for tensor in plan.parameters}
    assert shapes == {"left": ((2, 8, 5), (2, 24, 10)), "right": ((2, 6, 5), (2, 18, 10))}


def test_a_parameter_has_at_most_one_size_that_only_its_elements_tell(tmp_path):
    (tmp_path / "halves.yaml").write_text(HALVES.replace("e, [m + m], /a", "m, [m + m], /a"))
    shapes = {"gate": (2, 5), "experts.1.gate": (3, 5), "experts.2.gate": (3, 5)}
    with pytest.raises(RecipeError, match="unknown size"):
        make_plan(load_recipe(tmp_path / "halves.yaml"), specs(shapes), {"n": 5}, Request(axes={"a": 2}))

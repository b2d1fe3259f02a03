"""The sizes of public models, as targets of each other."""

import pytest
import shapes

from mupscale_cli.architecture.loading import load_recipe, recipe_for
from mupscale_cli.errors import PlanError
from mupscale_cli.plan import Request, make_plan
from mupscale_cli.plan.goal import Goal


def narrow(name):
    config = shapes.full_config(name)
    return make_plan(load_recipe(recipe_for(config), config), shapes.specs(name), config), config


def sizes(source, target, **options):
    plan, config = narrow(source)
    chosen = Goal(target, shapes.PUBLIC[target]).for_recipe(plan.recipe, config)
    return chosen.sizes(plan, config, **options), plan


REACHABLE = [
    ("Qwen3-0.6B", "Qwen3-1.7B"),
    ("Qwen3-1.7B", "Qwen3-4B"),
    ("Qwen3-4B", "Qwen3-8B"),
    ("SmolLM2-135M", "SmolLM2-360M"),
    ("gemma-3-270m", "gemma-3-1b"),
    ("gpt2", "gpt2-medium"),
    ("gpt2-medium", "gpt2-large"),
    ("gpt2-large", "gpt2-xl"),
    ("OLMo-2-1B", "OLMo-2-7B"),
    ("pythia-70m", "pythia-160m"),
    ("pythia-160m", "pythia-410m"),
    ("ViT-S", "ViT-B"),
    ("ViT-B", "ViT-L"),
]
SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "n_embd",
    "n_layer",
    "n_head",
)


@pytest.mark.parametrize(("source", "target"), REACHABLE)
def test_the_sizes_of_a_target_are_those_of_its_own_plan(source, target):
    found, plan = sizes(source, target)
    wide, config = narrow(target)
    layers = config.get("num_hidden_layers") or config["n_layer"]
    assert found == {**{axis.name: axis.size for axis in wide.axes if axis.name in plan.used}, "layers": layers}


@pytest.mark.parametrize(("source", "chosen"), [("Mixtral-8x7B", 4), ("Qwen3-30B-A3B", 16)])
def test_more_experts_are_chosen_for_each_token(source, chosen):
    """The loss that balances them, whose factor they are, keeps its size."""
    key = "num_local_experts"
    plan, config = narrow(source)
    goal = Goal("more experts", {**config, key: 2 * config[key]})
    wide = make_plan(plan.recipe, shapes.specs(source), config, Request(sizes=goal.sizes(plan, config)))
    assert {row.key: (row.after, row.fate) for row in goal.compare(config, wide.config).keys} == {
        key: (2 * config[key], "grown"),
        "num_experts_per_tok": (chosen, "adapted"),
        "router_aux_loss_coef": (0.0005, "adapted"),
    }


@pytest.mark.parametrize(
    ("source", "target", "reasons"),
    [
        (
            "Llama-3.2-1B",
            "Llama-3.2-3B",
            ["`num_attention_heads` 32 -> 24: the axis `g` (query heads", "cannot shrink from 4 to 3"],
        ),
        (
            "SmolLM2-360M",
            "SmolLM2-1.7B",
            ["the axis `g` (query heads per key/value head) cannot", "`num_hidden_layers` 32 -> 24"],
        ),
        ("Qwen3-1.7B", "Qwen3-0.6B", ["`hidden_size` 2048 -> 1024", "`intermediate_size` 6144 -> 3072"]),
    ],
)
def test_every_obstacle_is_in_one_message(source, target, reasons):
    with pytest.raises(PlanError, match=f"cannot grow to `{target}`") as error:
        sizes(source, target)
    assert all(reason in error.value.excerpt for reason in reasons)
    assert "--axis " in error.value.hint


def test_an_axis_that_is_chosen_in_another_way_is_no_obstacle():
    found, _ = sizes("Qwen3-1.7B", "Qwen3-0.6B", without={"embed", "ffn"})
    assert found == {"kv": 8, "g": 2, "d": 128, "layers": 28}


def test_head_counts_that_do_not_divide_are_refused():
    plan, config = narrow("Qwen3-0.6B")
    target = Goal("odd", {**shapes.PUBLIC["Qwen3-1.7B"], "num_attention_heads": 30})
    with pytest.raises(PlanError) as error:
        target.sizes(plan, config)
    assert "`num_attention_heads` is 30 in the target, but its parts multiply to 24" in error.value.excerpt


def test_a_target_needs_the_architecture_of_the_source():
    plan, config = narrow("Qwen3-0.6B")
    with pytest.raises(PlanError, match="another architecture: its `model_type` is 'gpt2', that of the source 'qwen3'"):
        Goal("gpt2", shapes.PUBLIC["gpt2"]).for_recipe(plan.recipe, config)
    inner = Goal("inner", {"model_type": "omni", "text_config": shapes.PUBLIC["Qwen3-4B"]})
    assert inner.for_recipe(plan.recipe, config).config == shapes.PUBLIC["Qwen3-4B"]


def test_only_a_target_with_a_readout_of_its_own_unties():
    plan, _ = narrow("Qwen3-4B")
    assert Goal("8B", shapes.PUBLIC["Qwen3-8B"]).unties(plan)
    assert not Goal("1.7B", shapes.PUBLIC["Qwen3-1.7B"]).unties(plan)


def test_every_key_that_differs_has_a_fate():
    source = {"width": 2, "theta": 1, "inner": {"size": 3, "act": "gelu"}, "top_k": 2, "use_cache": True}
    target = {"width": 4, "theta": 9, "inner": {"size": 3, "act": "silu"}, "top_k": 2, "new": 1}
    wide = {**source, "width": 4, "top_k": 4}
    rows = Goal("t", target).compare(source, wide).keys
    assert {row.key: (row.before, row.target, row.after, row.fate) for row in rows} == {
        "width": (2, 4, 4, "grown"),
        "theta": (1, 9, 1, "kept"),
        "inner.act": ("gelu", "silu", "gelu", "kept"),
        "top_k": (2, 2, 4, "adapted"),
        "new": (None, 1, None, "kept"),
    }


@pytest.mark.parametrize(("source", "target"), REACHABLE)
def test_the_planned_tensors_are_those_of_the_target(source, target):
    found, plan = sizes(source, target)
    config = shapes.full_config(source)
    tie = "untie" if Goal(target, shapes.PUBLIC[target]).unties(plan) else None
    wide = make_plan(plan.recipe, shapes.specs(source), config, Request(sizes=found), tie=tie)
    expected = {spec.name: spec.shape for spec in shapes.specs(target)}
    assert {tensor.target.name: tensor.target.shape for tensor in wide.tensors} == expected
    comparison = Goal(target, shapes.full_config(target)).compare(config, wide.config)
    keys = [key for key in SIZES if key in config]
    assert all(wide.config[key] == shapes.full_config(target)[key] for key in keys)
    assert {row.key for row in comparison.keys if row.fate == "grown"} >= {
        key for key in keys if config[key] != shapes.full_config(target)[key]
    }

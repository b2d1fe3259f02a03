"""Drafting recipes: sizes as polynomials, tiny models, and drafts that are proved from disk to disk."""

import contextlib
import itertools
import json

import pytest
import transformers.models.auto.modeling_auto

from cli_runner import run
from mupscale_cli.architecture.loading import load_recipe, model_types
from mupscale_cli.errors import MupscaleError
from mupscale_cli.infer import tiny
from mupscale_cli.infer.derived import derived_size
from mupscale_cli.infer.infer import infer, infer_own, infer_target
from mupscale_cli.infer.search import Budget
from mupscale_cli.infer.shapes import Idea, Monomial, polynomial, varied
from mupscale_cli.infer.tiny import TinyError, tiny_model, tiny_sizes
from mupscale_cli.tasks.check import smallest_factors
from mupscale_cli.tasks.planning import choose_recipe, plan_widening
from mupscale_cli.tasks.source import find_source

QUICK = Budget(trials=80, seconds=5, total=15)

OWN = '''
"""A perceptron with a fused pair of branches, one gate for both and a norm."""
import torch
from torch import nn

config = {"inputs": 5, "width": 12, "inner": 7, "vocab": 3}


class Net(nn.Module):
    def __init__(self, inputs, width, inner, vocab):
        super().__init__()
        self.first = nn.Linear(inputs, width)
        self.norm = nn.LayerNorm(width)
        self.pair = nn.Linear(width, 2 * inner)
        self.gain = nn.Parameter(torch.ones(inner))
        self.back = nn.Linear(inner, width)
        self.last = nn.Linear(width, 3)

    def forward(self, x):
        x = self.norm(torch.tanh(self.first(x)))
        a, b = self.pair(x).chunk(2, -1)
        return self.last(x + self.back(torch.sigmoid(a) * b * self.gain))


def build(config):
    return Net(config["inputs"], config["width"], config["inner"], config["vocab"])
'''


def layouts(recipe):
    return {rule.pattern.text: [choice.text.value for choice in rule.choices] for rule in recipe.tensors}


def drafted(tmp_path, model_type, **options):
    found = infer(model_type, budget=QUICK, **options)
    file = tmp_path / f"{model_type}-drafted.yaml"
    file.write_text(found.text)
    return found, load_recipe(file)


# Sizes ---------------------------------------------------------------------------------------------


def test_a_size_is_a_sum_of_products_of_axes():
    units = {"h": 4, "d": 3, "n": 5}

    def size(doubled):
        h, d, n = (units[name] * (2 if name in doubled else 1) for name in ("h", "d", "n"))
        return 2 * h * d + 3 * n + 7

    found = polynomial(size, units, units)
    assert set(found) == {Monomial(("d", "h"), 2), Monomial(("n",), 3), Monomial((), 7)}


def test_a_size_that_is_no_such_sum_is_refused():
    with pytest.raises(ValueError, match="not a multiple"):
        polynomial(lambda doubled: 10 if doubled else 7, {"h"}, {"h": 4})


def test_keys_move_by_powers_of_the_factor():
    ideas = (
        Idea("h", 4, (("hidden", 1), ("heads", 1)), "heads"),
        Idea("embed", 48, (("hidden", 1), ("expand", -1)), "hidden"),
    )
    config = {"hidden": 48, "heads": 4, "expand": 2, "list": [1]}
    assert varied(config, ideas, {"h": 3, "embed": 2}) == {"hidden": 288, "heads": 12, "expand": 1, "list": [1]}


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        (lambda c: c.get("inner", 4 * c["width"]), "4 * width"),
        (lambda c: c.get("inner", c["width"] // c["heads"]), "width // heads"),
        (lambda c: c.get("inner", 9), None),
        (lambda c: c["inner"], None),
    ],
)
def test_the_size_of_an_absent_key(measure, expected):
    assert derived_size(measure, {"inner": 5, "width": 48, "heads": 4}, "inner", ["width", "heads"]) == expected


# Tiny models ---------------------------------------------------------------------------------------


def test_sizes_by_the_names_of_keys():
    sizes = tiny_sizes(
        {
            "hidden_size": 4096,
            "num_attention_heads": 32,
            "intermediate_size": 11008,
            "dropout": 0.1,
            "moe_intermediate_size": 100,
            "use_cache": True,
            "eos_token_id": 77,
        }
    )
    assert "dropout" not in sizes
    assert "use_cache" not in sizes
    assert sizes["intermediate_size"] != sizes["moe_intermediate_size"]
    assert all(size <= 64 for size in sizes.values())


def test_a_tiny_model_keeps_the_flags_of_a_config():
    config = {"model_type": "llama", "hidden_size": 4096, "attention_bias": True, "num_hidden_layers": 32}
    model = tiny_model("llama", flags=config).model
    assert "model.layers.0.self_attn.q_proj.bias" in model.state_dict()
    assert model.config.hidden_size < 100


def test_an_unknown_type_is_told():
    with pytest.raises(TinyError, match="no model type `nothing`"):
        tiny_model("nothing")


# Drafts --------------------------------------------------------------------------------------------


def test_the_drafted_llama_widens_as_the_built_in_one(tmp_path):
    _, recipe = drafted(tmp_path, "llama")
    sources = [
        tiny_model("llama", overrides={"tie_word_embeddings": tie}).save(tmp_path / f"narrow-{tie}")
        for tie in (False, True)
    ]
    several = ({"embed": 2}, {"kv": 3}, {"g": 2, "ffn": 3}, {"embed": 2, "kv": 2, "g": 3, "ffn": 2})
    for source, factors in itertools.product(sources, several):
        plans = [plan_widening(source, axes=factors, recipe=name) for name in ("llama", recipe.path)]
        tensors = [{t.target.name: (t.target.shape, t.parts) for t in plan.tensors} for plan in plans]
        assert tensors[0] == tensors[1]
        assert plans[0].config == plans[1].config


# Of bart, causal language models have only the decoder.
BUILT_IN = sorted(
    set(model_types())
    & set(transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - {"bart", "whisper"}
)


# What the built-in recipes leave out: experts where some models of the type route by groups, groups without heads.
NARROWER = {"deepseek_v2": ("experts",), "falcon_h1": ("ng",)}


@pytest.mark.slow
@pytest.mark.parametrize("model_type", BUILT_IN)
def test_every_draft_widens_as_the_built_in_recipe(tmp_path, model_type):
    """Whatever one axis of the draft moves, some axes of the built-in recipe move likewise.

    Which tensor takes a factor may differ (queries or keys, a norm or a key of the config): both were
    verified to compute the same.
    """
    file = tmp_path / "drafted.yaml"
    file.write_text(infer(model_type).text)
    draft = load_recipe(file)
    for tied in (False, True):
        folder = tmp_path / f"tied-{tied}"
        source = find_source(tiny_model(model_type, overrides={"tie_word_embeddings": tied}).save(folder))
        built = choose_recipe(source.checkpoint)
        tie = "fold" if tied and built.tie and "fold" in built.tie.ways else None
        if tied and "tied_readout" not in file.read_text():
            continue  # the draft is for untied ones, and says so
        alone = (
            smallest_factors(draft, source.checkpoint, axis, 2)
            for axis in draft.axis_names
            if axis not in NARROWER.get(model_type, ())
        )
        for factors in filter(None, alone):
            drafted_plan = tensors_of(plan_widening(source, axes=factors, recipe=file))
            assert drafted_plan in list(plans_of(built, source, tie)), factors


def plans_of(recipe, source, tie):
    """What all axes of a recipe, alone and up to four together, make of a checkpoint when they are doubled."""
    free = [axis for axis in recipe.axis_names if axis not in recipe.fixed]
    for count in range(1, 5):
        for axes in itertools.combinations(free, count):
            with contextlib.suppress(MupscaleError):
                yield tensors_of(plan_widening(source, axes=dict.fromkeys(axes, 2), tie=tie))


def tensors_of(plan):
    return {tensor.target.name: tensor.target.shape for tensor in plan.tensors}


CASES = {
    # type: axes that must move, axes that must not, a layout
    "gpt2": ({"ffn", "h", "d"}, set(), ("transformer.h.*.attn.c_attn.weight", "/embed, [h d@d^-0.5 + h d + h d]")),
    "gemma": ({"embed", "kv", "g", "ffn"}, {"d"}, ("model.norm.weight", "embed | embed^-0.5 offset 1")),
    "phi3": ({"kv", "g", "ffn"}, {"d"}, ("model.layers.*.self_attn.qkv_proj.weight", "[kv g d + kv d + kv d], /embed")),
    "qwen3": ({"embed", "kv", "g", "ffn"}, {"d"}, ("model.layers.*.self_attn.{k,q}_norm.weight", "d")),
    "mixtral": (
        {"embed", "kv", "g", "ffn", "experts"},
        {"d"},
        ("model.layers.*.block_sparse_moe.experts.{experts}.w2.weight", "embed, /ffn"),
    ),
    "mamba": ({"embed", "ffn", "n", "r"}, set(), ("backbone.layers.*.mixer.x_proj.weight", "[r + n@n^-1 + n], /ffn")),
    "xglm": ({"ffn"}, {"h", "d"}, ("model.layers.*.fc2.weight", "embed, /ffn")),
}


LONG = ("mixtral", "gemma", "phi3", "gpt2")


@pytest.mark.parametrize(
    "model_type", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in CASES]
)
def test_drafts_hold_and_say_what_stays(tmp_path, model_type):
    found, recipe = drafted(tmp_path, model_type)
    moving, staying, (pattern, layout) = CASES[model_type]
    assert found.worst < 1e-12
    assert moving <= set(recipe.axis_names) - set(recipe.fixed)
    assert staying <= set(recipe.fixed)
    assert layout in layouts(recipe)[pattern]


def test_widths_that_are_lists_are_one_axis(tmp_path):
    found = infer("convnextv2", "image-classification", budget=QUICK)
    file = tmp_path / "drafted.yaml"
    file.write_text(found.text)
    source = tiny_model("convnextv2", "image-classification").save(tmp_path / "narrow")
    assert tensors_of(plan_widening(source, factor=3, recipe=file)) == tensors_of(plan_widening(source, factor=3))
    assert found.worst < 1e-12


def test_a_config_file_gives_the_type_and_its_flags(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "attention_bias": True}))
    found = infer_target(str(tmp_path), budget=QUICK)
    assert "self_attn.{k,v}_proj.bias" in found.text


def test_an_own_model_from_the_command_line(tmp_path):
    (tmp_path / "net.py").write_text(OWN)
    result = run("recipes", "infer", f"{tmp_path / 'net.py'}:build", "-o", str(tmp_path / "net.yaml"))
    assert result.code == 0, result.err
    recipe = load_recipe(tmp_path / "net.yaml")
    found = layouts(recipe)
    assert len(recipe.widen) >= 1
    assert any("+" in layout for layout in found["pair.weight"])


def test_an_own_model_without_config_is_told(tmp_path):
    (tmp_path / "net.py").write_text(OWN.replace("config = {", "other = {"))
    with pytest.raises(MupscaleError, match="needs a config"):
        infer_own(f"{tmp_path / 'net.py'}:build")


def test_what_cannot_be_widened_is_told(tmp_path):
    net = OWN.replace("x = self.norm(", "x = x.mean() * len(self.first.bias) ** 2 + self.norm(").replace(
        "return self.last(", "return len(self.gain) ** 3 + self.last("
    )
    (tmp_path / "net.py").write_text(net)
    result = run("recipes", "infer", f"{tmp_path / 'net.py'}:build")
    assert result.code == 2
    assert "no axis of" in result.err


def test_what_stays_large_is_not_built(monkeypatch):
    """As composite models, whose parts keep their sizes: they would take all memory."""
    monkeypatch.setattr(tiny, "_LARGEST", 1000)
    with pytest.raises(tiny.TinyError, match=r"a tiny `llama` cannot be built: .* it still has 0 M parameters"):
        tiny.tiny_model("llama")

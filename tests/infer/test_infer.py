"""Drafted recipes, and their proof on random tiny models."""

import contextlib
import itertools
import json

import pytest
import safetensors.torch

from cli_runner import run
from mupscale_cli import widen
from mupscale_cli.architecture.loading import load_recipe, read_draft
from mupscale_cli.errors import MupscaleError
from mupscale_cli.infer.groups import narrowed
from mupscale_cli.infer.infer import infer, infer_target, infer_user_model
from mupscale_cli.infer.search import Budget
from mupscale_cli.infer.tiny import tiny_model
from mupscale_cli.tasks.check import smallest_factors
from mupscale_cli.tasks.planning import choose_recipe, plan_widening
from mupscale_cli.tasks.source import find_source
from mupscale_cli.verification.user_models import load_user_module

QUICK = Budget(trials=80, seconds=5, total=15)

USER_MODEL = '''
"""A perceptron with two fused branches, a gate over both and a norm."""
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
    inferred = infer(model_type, budget=QUICK, **options)
    file = tmp_path / f"{model_type}-drafted.yaml"
    file.write_text(inferred.text)
    return inferred, load_recipe(file)


def test_llama_draft_widens_like_the_built_in_recipe(tmp_path):
    _, recipe = drafted(tmp_path, "llama")
    sources = [
        tiny_model("llama", overrides={"tie_word_embeddings": tie}).save(tmp_path / f"narrow-{tie}")
        for tie in (False, True)
    ]
    factor_sets = ({"embed": 2}, {"kv": 3}, {"g": 2, "ffn": 3}, {"embed": 2, "kv": 2, "g": 3, "ffn": 2})
    for source, factors in itertools.product(sources, factor_sets):
        plans = [plan_widening(source, axes=factors, recipe=name) for name in ("llama", recipe.path)]
        tensors = [{t.target.name: (t.target.shape, t.parts) for t in plan.tensors} for plan in plans]
        assert tensors[0] == tensors[1]
        assert plans[0].config == plans[1].config


# One causal language model of each of these shapes; a draft takes 10 to 80 seconds.
SHAPES = (
    *("bert", "bloom", "cohere", "deepseek_v3", "falcon", "falcon_mamba", "gemma", "glm", "gpt2", "gpt_bigcode"),
    *("gpt_neox", "gpt_oss", "gptj", "granitemoe", "lfm2", "llama", "mamba2", "mixtral", "mpt", "olmo2", "opt", "phi"),
    *("phi3", "qwen3", "qwen3_moe", "stablelm", "starcoder2", "xglm"),
)


# Axes without a counterpart in the built-in recipe.
NOT_BUILT_IN: dict[str, tuple[str, ...]] = {}


@pytest.mark.slow
@pytest.mark.parametrize("model_type", SHAPES)
def test_draft_widens_like_the_built_in_recipe(tmp_path, model_type):
    """For each axis of the draft, some axes of the built-in recipe produce the same shapes.

    Different tensors may take the factor: queries or keys, a norm or a key of the config. Both were verified to
    compute the same.
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
            continue  # the draft covers only untied readouts
        alone = (
            smallest_factors(draft, source.checkpoint, axis, 2)
            for axis in draft.axis_names
            if axis not in NOT_BUILT_IN.get(model_type, ())
        )
        for factors in filter(None, alone):
            shapes = wide_shapes(plan_widening(source, axes=factors, recipe=file))
            assert shapes in list(doubled_shapes(built, source, tie)), factors


def doubled_shapes(recipe, source, tie):
    """Yield the shapes of the tensors with up to four axes doubled together."""
    free = [axis for axis in recipe.axis_names if axis not in recipe.fixed]
    for count in range(1, 5):
        for axes in itertools.combinations(free, count):
            with contextlib.suppress(MupscaleError):
                yield wide_shapes(plan_widening(source, axes=dict.fromkeys(axes, 2), tie=tie))


def wide_shapes(plan):
    return {tensor.target.name: tensor.target.shape for tensor in plan.tensors}


CASES = {
    # model type: axes that must move, axes that must be fixed, one layout
    "gpt2": ({"ffn", "h", "d"}, set(), ("transformer.h.*.attn.c_attn.weight", "/embed, [h d@d^-1 #d^0.5 + h d + h d]")),
    "gemma": (
        {"embed", "kv", "g", "ffn", "d"},
        set(),
        ("model.norm.weight", "embed | embed^-1 #embed^0.5 offset 1 rms"),
    ),
    "phi3": ({"kv", "g", "ffn"}, {"d"}, ("model.layers.*.self_attn.qkv_proj.weight", "[kv g d + kv d + kv d], /embed")),
    "qwen3": (
        {"embed", "kv", "g", "ffn", "d"},
        set(),
        ("model.layers.*.self_attn.q_norm.weight", "d | #d^0.5 rms of q_proj"),
    ),
    "mixtral": (
        {"embed", "kv", "g", "ffn", "experts", "d"},
        set(),
        ("model.layers.*.block_sparse_moe.experts.{experts}.w2.weight", "embed, /ffn"),
    ),
    "mamba": ({"embed", "ffn", "n", "r"}, set(), ("backbone.layers.*.mixer.x_proj.weight", "[r + n@n^-1 + n], /ffn")),
    "xglm": ({"ffn"}, {"h", "d"}, ("model.layers.*.fc2.weight", "embed, /ffn")),
}


LONG = ("mixtral", "gemma", "phi3", "gpt2", "mamba")


@pytest.mark.parametrize(
    "model_type", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in CASES]
)
def test_draft_is_exact_and_lists_the_fixed_axes(tmp_path, model_type):
    inferred, recipe = drafted(tmp_path, model_type)
    moving, fixed, (pattern, layout) = CASES[model_type]
    assert inferred.worst < 1e-12
    assert moving <= set(recipe.axis_names) - set(recipe.fixed)
    assert fixed <= set(recipe.fixed)
    assert layout in layouts(recipe)[pattern]


@pytest.mark.slow
def test_stages_are_drafted_as_one_axis(tmp_path):
    inferred = infer("convnextv2", "image-classification", budget=QUICK)
    file = tmp_path / "drafted.yaml"
    file.write_text(inferred.text)
    source = tiny_model("convnextv2", "image-classification").save(tmp_path / "narrow")
    assert wide_shapes(plan_widening(source, factor=3, recipe=file)) == wide_shapes(plan_widening(source, factor=3))
    assert inferred.worst < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "key", "layout"),
    [
        ("mobilenet_v1", "depth_multiplier", "c, /c, ., ."),
        ("mobilenet_v2", "depth_multiplier", "c, /c, ., ."),
        ("efficientnet", "width_coefficient", "c, /c, ., ."),
        ("regnet", "groups_width", "c, /c, ., ."),
        ("resnet", "hidden_sizes", "c, /c, ., ."),
    ],
)
def test_convolutions_with_multipliers_or_groups(tmp_path, model_type, key, layout):
    inferred = infer(model_type, "image-classification")
    (tmp_path / "drafted.yaml").write_text(inferred.text)
    recipe = load_recipe(tmp_path / "drafted.yaml")
    assert inferred.worst < 1e-12
    assert f"  {key}: {key} | c" in inferred.text
    assert [layout] in layouts(recipe).values()
    assert len(recipe.tensors) < 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "moving", "given_up"),
    [
        ("chinese_clip", {"h", "d", "ffn", "vision_h", "vision_d", "vision_ffn", "projection"}, set()),
        ("deepseek_vl", {"embed", "kv", "g", "ffn", "d"}, {"vision_config.hidden_size"}),  # its head is not used
    ],
)
def test_parts_have_axes_of_their_own_where_the_inputs_reach_them(model_type, moving, given_up):
    inferred = infer(model_type, "base", budget=QUICK)
    assert inferred.worst < 1e-12
    assert set(inferred.draft.movable) == moving
    assert given_up <= set(inferred.draft.axes.given_up)
    assert not any(name.startswith("vision") for name in inferred.draft.widen)


def test_layers_that_differ_are_told_apart_as_a_person_would():
    def names(*numbers):
        return [f"layers.{number}.up.weight" for number in numbers]

    assert narrowed([names(0), names(1, 2, 3)], {}) == ["layers.{first}.up.weight", "layers.*.up.weight"]
    assert narrowed([names(0, 1, 2), names(3)], {}) == ["layers.*.up.weight", "layers.{last}.up.weight"]
    assert narrowed([names(0, 2, 4), names(1, 3)], {}) == ["layers.*.up.weight", "layers.{1,3}.up.weight"]
    alone = ["layers.0.up.weight", "layers.1.up.weight", "layers.2.up.weight"]
    assert narrowed([[name] for name in alone], {}) == alone  # another model's last layer may be any of them


def test_config_file_sets_the_model_type_and_flags(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "attention_bias": True}))
    inferred = infer_target(str(tmp_path), budget=QUICK)
    assert "self_attn.{k,v}_proj.bias" in inferred.text


def test_user_model_from_the_command_line(tmp_path):
    (tmp_path / "net.py").write_text(USER_MODEL)
    result = run("recipes", "infer", f"{tmp_path / 'net.py'}:build", "-o", str(tmp_path / "net.yaml"))
    assert result.code == 0, result.err
    recipe = load_recipe(tmp_path / "net.yaml")
    assert len(recipe.widen) >= 1
    assert any("+" in layout for layout in layouts(recipe)["pair.weight"])


RECURRENT = """
from torch import nn

config = {"vocab": 11, "inputs": 5, "hidden": 6}


class Net(nn.Module):
    def __init__(self, config, kind, **options):
        super().__init__()
        self.first = nn.Embedding(config["vocab"], config["inputs"])
        self.rnn = getattr(nn, kind)(config["inputs"], config["hidden"], 2, batch_first=True, **options)
        self.last = nn.Linear(config["hidden"] * (1 + bool(options)), 3)

    def forward(self, ids):
        return self.last(self.rnn(self.first(ids))[0])
"""


@pytest.mark.parametrize(
    ("call", "gates"),
    [
        ('"LSTM"', "(4 hidden_axis)"),
        ('"LSTM", bidirectional=True', "(4 hidden_axis)"),
        ('"GRU"', "[hidden_axis + hidden_axis + hidden_axis]"),
        ('"RNN"', "hidden_axis"),
    ],
)
def test_recurrent_layers(tmp_path, call, gates):
    (tmp_path / "net.py").write_text(f"{RECURRENT}\n\ndef build(config):\n    return Net(config, {call})\n")
    inferred = infer_user_model(f"{tmp_path / 'net.py'}:build")
    assert inferred.worst < 1e-14
    assert not inferred.fixed
    assert f'"{gates}, /hidden_axis"' in inferred.text


def test_numbers_of_blocks_follow_the_blocks(tmp_path):
    """SAM's list of blocks with global attention has as many entries as a small model has blocks."""
    inferred, _ = drafted(tmp_path, "sam_vision_model", task="SamVisionModel")
    assert 'global_attn_indexes: "[like layers]"' in inferred.text
    assert "layers x2" in inferred.errors


def test_a_draft_has_every_kind_of_block_that_the_config_names(tmp_path):
    flags = {"num_hidden_layers": 2, "window_block_indices": [0], "residual_block_indices": [1]}
    _, recipe = drafted(tmp_path, "vitdet", task="VitDetBackbone", flags=flags)
    assert "encoder.layer.*.residual.conv1.weight" in " ".join(layouts(recipe)).replace("{conv1,conv2,conv3}", "conv1")
    assert "mlp_ratio_axis" in recipe.widen
    assert set(recipe.fixed) == {"embed", "h", "d"}  # the bottleneck has half the channels


def test_equal_widths_stay_equal_in_the_tiny_model(tmp_path):
    """GLPN's last decoder stage has no projection if its width is that of the first encoder stage."""
    flags = {"hidden_sizes": [64, 128, 320, 512], "decoder_hidden_size": 64}
    inferred, recipe = drafted(tmp_path, "glpn", task="GLPNForDepthEstimation", flags=flags)
    assert "  decoder_hidden_size: decoder_hidden_size | c\n" in inferred.text
    assert layouts(recipe)["decoder.stages.*.convolution.weight"] == ["c, /c, ., ."]
    assert inferred.worst < 1e-13


CATEGORIES = """
import torch
from torch import nn

config = {"inputs": 5, "width": 12, "freq_size": 3}


class Net(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.first = nn.Linear(config["inputs"], config["width"])
        self.kind = nn.Embedding(config["freq_size"], config["width"])
        self.last = nn.Linear(config["width"], 3)

    def forward(self, x, kind):
        return self.last(torch.tanh(self.first(x) + self.kind(kind)))


def inputs(config, generator):
    return torch.randn(2, config["inputs"], generator=generator), torch.zeros(2, dtype=torch.long)


def build(config):
    return Net(config)
"""


def test_the_rows_of_a_table_are_no_units(tmp_path):
    """Its inputs all name the first row, so that copies of rows would compute the same as before."""
    (tmp_path / "net.py").write_text(CATEGORIES)
    inferred = infer_user_model(f"{tmp_path / 'net.py'}:build")
    (tmp_path / "net.yaml").write_text(inferred.text)
    recipe = load_recipe(tmp_path / "net.yaml")
    assert recipe.axis_names == ("width_axis",)
    assert layouts(recipe)["kind.weight"] == ["., width_axis"]


TRANSFORMER = """
import torch
from torch import nn
from torch.nn import functional as F

config = {"vocab": 31, "d_model": 24, "n_head": 4, "d_ff": 40}


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(c["d_model"]), nn.LayerNorm(c["d_model"])
        self.qkv, self.proj = nn.Linear(c["d_model"], 3 * c["d_model"]), nn.Linear(c["d_model"], c["d_model"])
        self.up, self.down = nn.Linear(c["d_model"], c["d_ff"]), nn.Linear(c["d_ff"], c["d_model"])
        self.heads = c["n_head"]

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.ln1(x)).chunk(3, -1))
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.ln2(x))))


class Net(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.tok = nn.Embedding(c["vocab"], c["d_model"])
        self.blocks = nn.Sequential(Block(c), Block(c))
        self.ln = nn.LayerNorm(c["d_model"])
        self.head = nn.Linear(c["d_model"], c["vocab"], bias=False)
        self.head.weight = self.tok.weight

    def forward(self, ids):
        return self.head(self.ln(self.blocks(self.tok(ids))))


def build(config):
    return Net(config)
"""


def test_a_tied_transformer_whose_file_has_the_other_name(tmp_path):
    """Its attention is known by the names of the projections; `save_model` keeps the name of the readout."""
    (tmp_path / "net.py").write_text(TRANSFORMER)
    reference = f"{tmp_path / 'net.py'}:build"
    result = run("recipes", "infer", reference, "-o", str(tmp_path / "net.yaml"))
    assert result.code == 0, result.err
    assert "`--factor` widens embed through h (attention heads), ffn (d_ff)" in result.err
    module = load_user_module(reference)[0]
    (tmp_path / "narrow").mkdir()
    safetensors.torch.save_model(module.build(module.config), str(tmp_path / "narrow/model.safetensors"))
    (tmp_path / "narrow/config.json").write_text(json.dumps(module.config))
    options = {"recipe": tmp_path / "net.yaml", "model": reference, "dtype": "float64"}
    widened = widen(tmp_path / "narrow", tmp_path / "wide", axes={"h": 2, "d": 2, "ffn": 2}, **options)
    assert widened.verification.max_rel < 1e-12


POOLING = """
import torch
from torch import nn
from torch.nn import functional as F

config = {"hidden_size": 24, "num_attention_heads": 4}


class Net(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.first, self.norm = nn.Linear(5, width), nn.LayerNorm(width)
        self.probe = nn.Parameter(torch.zeros(1, 1, width))
        self.k_proj, self.v_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)

    def forward(self, x):
        x = self.norm(self.first(x))[:, None] * torch.arange(1, 4)[:, None]
        made = self.probe, self.k_proj(x), self.v_proj(x)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in made)
        pooled = F.scaled_dot_product_attention(q, k, v).flatten(1)
        return {"last_hidden_state": x, "pooler_output": self.output_proj(pooled)}


def build(config):
    return Net(config["hidden_size"], config["num_attention_heads"])
"""


TWO_ATTENTIONS = """
import torch
from torch import nn
from torch.nn import functional as F

config = {"d_model": 24, "encoder_attention_heads": 4, "decoder_attention_heads": 4}


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        made = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in made)
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def build(c):
    heads = c["encoder_attention_heads"], c["decoder_attention_heads"]
    attentions = (Attention(c["d_model"], some) for some in heads)
    return nn.Sequential(nn.Linear(5, c["d_model"]), *attentions, nn.Linear(c["d_model"], 3))


def inputs(config, generator):
    return (torch.randn(2, 4, 5, generator=generator),)
"""


def test_heads_that_are_one_axis_must_be_as_many_in_the_source(tmp_path):
    """Two numbers of heads are equal in the tiny model: its layouts do not hold for others."""
    (tmp_path / "net.py").write_text(TWO_ATTENTIONS)
    reference = f"{tmp_path / 'net.py'}:build"
    (tmp_path / "net.yaml").write_text(infer_user_model(reference).text)
    module = load_user_module(reference)[0]
    options = {"recipe": tmp_path / "net.yaml", "model": reference, "dtype": "float64"}
    for heads, name in ((4, "same"), (2, "other")):
        config = {**module.config, "decoder_attention_heads": heads}
        (tmp_path / name).mkdir()
        safetensors.torch.save_model(module.build(config), str(tmp_path / name / "model.safetensors"))
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    assert widen(tmp_path / "same", tmp_path / "wide", factor=2, **options).verification.max_rel < 1e-12
    with pytest.raises(MupscaleError, match="whose config has `decoder_attention_heads: 2`"):
        widen(tmp_path / "other", tmp_path / "wider", factor=2, **options)


def test_every_output_is_exact_and_not_the_first_alone(tmp_path):
    """The query of the pooling attention is a parameter; only the second output tells how large it must be."""
    (tmp_path / "net.py").write_text(POOLING)
    inferred = infer_user_model(f"{tmp_path / 'net.py'}:build")
    assert inferred.worst < 1e-12
    assert set(inferred.draft.movable) == {"h", "d"}
    assert layouts(read_draft(inferred.text, "pooling"))["probe"] == ["., ., (h d) | d^-1 #d^0.5"]


UNUSED = """
import torch
from torch import nn

config = {"inputs": 5, "width": 12, "guess": 8}


class Net(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.first, self.last = nn.Linear(c["inputs"], c["width"]), nn.Linear(c["width"], 3)
        self.predictor = nn.Sequential(nn.Linear(c["width"], c["guess"]), nn.Linear(c["guess"], c["guess"]))

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))


def build(config):
    return Net(config)
"""


def test_an_axis_of_tensors_that_no_output_depends_on_is_given_up(tmp_path):
    """Whatever became of the predictor, the outputs would stay the same: that is no proof."""
    (tmp_path / "net.py").write_text(UNUSED)
    inferred = infer_user_model(f"{tmp_path / 'net.py'}:build")
    assert inferred.draft.movable == ["width_axis"]
    assert "does not depend on `predictor.0.weight`" in inferred.draft.axes.given_up["guess"]


def test_an_axis_that_is_halved_stays_and_the_others_grow(tmp_path):
    """A table of angles has half as many entries as a head has units, which no product of axes describes."""
    net = POOLING.replace(
        "self.probe", "self.angles = nn.Parameter(torch.zeros(width // heads // 2))\n        self.probe", 1
    )
    turned = "torch.cat([half * self.angles.cos() for half in k.chunk(2, -1)], -1)"
    net = net.replace("pooled =", f"k = {turned}\n        pooled =")
    (tmp_path / "net.py").write_text(net)
    inferred = infer_user_model(f"{tmp_path / 'net.py'}:build")
    assert inferred.draft.movable == ["h"]
    assert "is not a multiple of d" in inferred.fixed["d"]
    assert layouts(read_draft(inferred.text, "pooling"))["angles"] == ["."]


def test_a_model_that_draws_a_mask_draws_the_same_in_every_trial(tmp_path):
    net = USER_MODEL.replace("return self.last(", "x = x * (torch.rand(len(x), 1) + 0.5)\n        return self.last(")
    (tmp_path / "net.py").write_text(net)
    assert len(infer_user_model(f"{tmp_path / 'net.py'}:build").draft.movable) == 2


def test_layers_that_no_number_tells_apart_have_rules_of_their_own(tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "config = {'inputs': 5, 'width': 8}\n\n\n"
        "def build(c):\n"
        "    w = c['width']\n"
        "    sizes = ((c['inputs'], w, 2 * w), (2 * w, 3 * w, 1))\n"
        "    stages = [nn.Sequential(nn.Linear(a, b), nn.Tanh(), nn.Linear(b, c)) for a, b, c in sizes]\n"
        "    return nn.Sequential(nn.Sequential(*stages), nn.Tanh())\n"
    )
    inferred = infer_user_model(f"{tmp_path / 'net.py'}:build")
    assert inferred.worst < 1e-12
    assert len(inferred.draft.movable) == 1
    assert "0.1.0.weight" in layouts(read_draft(inferred.text, "stages"))


def test_user_model_needs_a_config(tmp_path):
    (tmp_path / "net.py").write_text(USER_MODEL.replace("config = {", "other = {"))
    with pytest.raises(MupscaleError, match="needs a config"):
        infer_user_model(f"{tmp_path / 'net.py'}:build")


def test_model_without_an_exact_axis_is_refused(tmp_path):
    net = USER_MODEL.replace("x = self.norm(", "x = x.mean() * len(self.first.bias) ** 2 + self.norm(").replace(
        "return self.last(", "return len(self.gain) ** 3 + self.last("
    )
    (tmp_path / "net.py").write_text(net)
    result = run("recipes", "infer", f"{tmp_path / 'net.py'}:build")
    assert result.code == 2
    assert "no axis of" in result.err

"""Finding and reading recipes, and merging them with the recipes that they extend."""

import pytest

from mupscale_cli.architecture import loading
from mupscale_cli.architecture.loading import (
    load_recipe,
    matched_keys,
    matched_values,
    read_headings,
    read_patterns,
    recipe_files,
    recipe_for,
)
from mupscale_cli.errors import RecipeError

SMALL = """
match: {model_type: [small]}
axes: {embed: hidden, ffn: inner}
widen: [embed, ffn]
config: {hidden: embed, inner: ffn}
tensors: {"*.up.weight": "ffn, /embed", "*.down.weight": "embed, /ffn"}
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="small"):
        file = tmp_path / f"{name}.yaml"
        file.write_text(text)
        return file

    return write


# Chosen by name, or by the recipe of which they are a part.
PARTS = (
    *("mlp_mup", "resnet18_mup", "qwen_vision", "pixtral", "internvl_vision", "glm4v_vision"),
    *("t5gemma_stack", "t5gemma2_stack", "cosmos3_edge_text", "ernie4_5_vl_text", "molmo2_text"),
    *("cosmos3_edge_vision", "ernie4_5_vision", "hunyuan_vision", "kimi_vision", "minicpmv_vision", "molmo2_vision"),
    *("hy_v4_vision", "muse_glimmer_vision", "mistral_large4_text", "mistral_large4_vision"),
)


@pytest.mark.parametrize("file", recipe_files(), ids=lambda file: file.stem)
def test_built_in_recipes_load_and_have_descriptions(file):
    recipe = load_recipe(file.stem)
    assert recipe.about
    assert recipe.widen or recipe.depths
    assert recipe.keys or recipe.tensor_patterns or file.stem in PARTS
    assert all(axis.about for axis in recipe.axes)
    endings = {pattern.endings for pattern in read_patterns(file)}
    assert {rule.pattern.endings for rule in recipe.tensors} <= endings  # else recognition could miss it


def test_a_heading_has_what_the_whole_recipe_has():
    """Of a recipe by itself, one that extends another, and one of several parts, which are those that it names."""
    headings = {heading.name: heading for heading in read_headings()}
    assert list(headings) == [file.stem for file in recipe_files()]
    for name in ("llama", "gemma", "llava"):
        recipe, heading = load_recipe(name), headings[name]
        assert (heading.about, heading.keys, heading.axis_names) == (recipe.about, recipe.keys, recipe.axis_names)


def test_a_changed_file_is_read_again(write):
    first = load_recipe(write(SMALL))
    second = load_recipe(write(SMALL.replace("[embed, ffn]", "[ffn]")))
    assert (first.widen, second.widen) == (("embed", "ffn"), ("ffn",))
    assert first.digest != second.digest


def test_extends_merges_sections_and_removes_keys(write):
    write(SMALL)
    text = 'match: {model_type: [other]}\ntensors:\n  "*.up.weight": ~\n  "*.gate.weight": "ffn, /embed"\n'
    child = load_recipe(write(f"extends: small\n{text}", "child"))
    assert child.name == "child"
    assert child.model_types == ("other",)
    assert [rule.pattern.text for rule in child.tensors] == ["*.down.weight", "*.gate.weight"]
    assert child.axis_names == ("embed", "ffn")


def test_an_axis_and_a_stack_inherit_the_words_that_they_do_not_mention(write):
    """A lost eps would show only if the axis grows to a size that is not a multiple."""
    write(
        SMALL.replace("embed: hidden,", "embed: {size: hidden, eps: norm_eps, about: stream, uneven: true},")
        + "depth: {layers: {size: num_layers, names: layers.*, every: interval, about: blocks}}\n"
    )
    child = load_recipe(write("extends: small\naxes: {embed: width}\ndepth: {layers: {about: layers}}\n", "child"))
    embed, _ = child.axes
    assert (embed.text.value, embed.eps, embed.about, embed.uneven) == ("width", ("norm_eps",), "stream", True)
    (layers,) = child.depths
    assert (layers.key, layers.about, [text.value for _, text in layers.every]) == (
        "num_layers",
        "layers",
        ["interval"],
    )
    removed = "extends: child\naxes: {embed: {eps: ~}}\ndepth: {layers: {every: ~}}\n"
    grandchild = load_recipe(write(removed, "grandchild"))
    assert (grandchild.axes[0].eps, grandchild.axes[0].about) == (None, "stream")
    assert not grandchild.depths[0].every
    assert load_recipe(write("extends: small\naxes: {ffn: {size: more, about: x}}\n", "other")).axes[1].about == "x"


@pytest.mark.parametrize(
    ("extends", "message"), [("smal", "small.yaml:1: unknown recipe `smal`"), ("small", "extends itself")]
)
def test_extending_an_unknown_recipe_or_itself_is_refused(extends, message, write):
    with pytest.raises(RecipeError, match=message):
        load_recipe(write(f"extends: {extends}\n{SMALL}"))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="cannot read `"):
        load_recipe(tmp_path / "none.yaml")


def test_every_value_belongs_to_at_most_one_recipe_without_a_condition():
    for key in matched_keys():
        for value, names in matched_values(key).items():
            recipes = [load_recipe(name) for name in names]
            assert all(value in recipe.keys[key] for recipe in recipes)
            conditions = [recipe.condition for recipe in recipes]
            assert conditions.count(None) <= 1, value
            assert all(conditions.count(condition) == 1 for condition in conditions), value


@pytest.fixture
def built_in(write, monkeypatch):
    """Make files the only built-in recipes."""

    def replace(**matches):
        files = tuple(write(SMALL.replace("model_type: [small]", text), name) for name, text in matches.items())
        monkeypatch.setattr(loading, "recipe_files", lambda: files)
        loading._match_sections.cache_clear()

    yield replace
    loading._match_sections.cache_clear()


def test_a_recipe_is_chosen_by_any_config_key(built_in):
    built_in(
        a="architecture: [vit_*, deit_*]",
        b="architecture: [vit_relpos_*]",
        c="architecture: [vit_*], when: model_args.gated",
        d='model_cfg: ["*"]',
        e="_class_name: [DiT], kind.of: [big]",
    )
    assert recipe_for({"architecture": "deit_tiny"}) == "a"
    assert recipe_for({"architecture": "vit_relpos_tiny"}) == "b"  # the longer wildcard
    assert recipe_for({"architecture": "vit_relpos_tiny", "model_args": {"gated": True}}) == "c"  # its condition
    assert recipe_for({"model_cfg": {"embed_dim": 3}}) == "d"
    assert recipe_for({"_class_name": "DiT"}) is None  # every key must match
    assert recipe_for({"_class_name": "DiT", "kind": {"of": "big"}}) == "e"
    assert recipe_for({"architecture": "resnet50"}) is None

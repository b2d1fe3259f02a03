"""Finding and reading recipes, and merging them with the recipes that they extend."""

import pytest

from mupscale_cli.architecture.loading import load_recipe, model_types, recipe_files
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


@pytest.mark.parametrize("file", recipe_files(), ids=lambda file: file.stem)
def test_built_in_recipes_load_and_have_descriptions(file):
    recipe = load_recipe(file.stem)
    assert recipe.about
    assert recipe.widen
    assert recipe.model_types or recipe.tensor_patterns or file.stem in ("mlp_mup", "resnet18_mup", "qwen_vision")
    assert all(axis.about for axis in recipe.axes)


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


@pytest.mark.parametrize(
    ("extends", "message"), [("smal", "small.yaml:1: unknown recipe `smal`"), ("small", "extends itself")]
)
def test_extending_an_unknown_recipe_or_itself_is_refused(extends, message, write):
    with pytest.raises(RecipeError, match=message):
        load_recipe(write(f"extends: {extends}\n{SMALL}"))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="cannot read `"):
        load_recipe(tmp_path / "none.yaml")


def test_only_recipes_that_mention_a_type_are_parsed():
    everything = model_types()
    for model_type, recipes in everything.items():
        assert [name for _, name in model_types(model_type)[model_type]] == [name for _, name in recipes]
    assert len(model_types("granitemoehybrid")) < len(everything) / 4


def test_model_types_belong_to_one_recipe_without_a_condition():
    for model_type, recipes in model_types().items():
        assert [condition for condition, _ in recipes].count(None) == 1, model_type
        assert all(model_type in load_recipe(name).model_types for _, name in recipes)

"""Recipe files: sections, inheritance, and mistakes with their places."""

import pytest

from mupscale_cli.architecture.recipe import load_recipe, model_types, recipe_files
from mupscale_cli.errors import RecipeError

SMALL = """
match: {model_type: [small]}
axes:
  embed: {size: hidden, about: the stream}
  ffn: inner or 4 * embed
widen: [embed, ffn]
config: {hidden: embed, inner?: ffn}
tensors:
  "*.up.weight": "ffn, /embed"
  "*.down.weight": [{when: wide, dims: "embed, /ffn | embed^-1"}, "embed, /ffn"]
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="small"):
        file = tmp_path / f"{name}.yaml"
        file.write_text(text)
        return file

    return write


@pytest.mark.parametrize("file", recipe_files(), ids=lambda file: file.stem)
def test_built_in_recipes_load_and_explain_themselves(file):
    recipe = load_recipe(file.stem)
    assert recipe.about
    assert recipe.widen
    assert recipe.model_types or recipe.tensor_patterns or file.stem in ("mlp_mup", "resnet18_mup", "qwen_vision")
    assert all(axis.about for axis in recipe.axes)


def test_a_recipe_file(write):
    recipe = load_recipe(write(SMALL))
    assert recipe.name == "small"
    assert recipe.model_types == ("small",)
    assert recipe.axis_names == ("embed", "ffn")
    assert [rule.key for rule in recipe.config] == ["hidden", "inner"]
    assert [rule.optional for rule in recipe.config] == [False, True]
    choices = recipe.tensors[1].choices
    assert [choice.condition and choice.condition.value for choice in choices] == ["wide", None]


def test_a_changed_file_is_read_again(write):
    first = load_recipe(write(SMALL))
    second = load_recipe(write(SMALL.replace("[embed, ffn]", "[ffn]")))
    assert (first.widen, second.widen) == (("embed", "ffn"), ("ffn",))
    assert first.digest != second.digest


def test_extends_merges_sections_and_removes_keys(write):
    write(SMALL)
    text = 'match: {model_type: [other]}\ntensors:\n  "*.up.weight": ~\n  "*.gate.weight": "ffn, /embed"\n'
    child = load_recipe(write(f"extends: small\n{text}", "child"))
    assert child.model_types == ("other",)
    assert [rule.pattern.text for rule in child.tensors] == ["*.down.weight", "*.gate.weight"]
    assert child.axis_names == ("embed", "ffn")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("widen:", "widenn:", "unknown section `widenn`.*did you mean `widen`"),
        ("[embed, ffn]\n", "[embed, fnn]\n", "fnn.*did you mean `ffn`"),
        ('"ffn, /embed"', '"fnn, /embed"', "small.yaml:9.*fnn"),
        ("embed^-1", "embd^-1", "embd"),
        ("size: hidden", "sise: hidden", "unknown key `sise`"),
        ("{size: hidden, about: the stream}", "{about: the stream}", "has no `size`"),
        ("when: wide, ", "", "needs both"),
        ('[{when: wide, dims: "embed, /ffn | embed^-1"}, "embed, /ffn"]', "[embed, embed]", "never taken"),
        ("inner or 4", "inner or", "small.yaml:5"),
        ("match: {model_type: [small]}", "match: [small]", "small.yaml:2"),
        ("  embed: {size", "  1embed: {size", "1embed"),
        ("match:", "extends: smal\nmatch:", "no recipe `smal`"),
        ("match:", "extends: small\nmatch:", "extends itself"),
        ("widen: [embed, ffn]", "widen: [embed]\nfixed: {embed: no}", "embed"),
        ("widen: [embed, ffn]", "widen: [embed]\nlinked: {embed: h * ffn}", "`?h`?"),
    ],
)
def test_mistakes_are_shown_with_their_place(old, new, message, write):
    assert old in SMALL
    with pytest.raises(RecipeError, match=f"(?s){message}") as error:
        load_recipe(write(SMALL.replace(old, new, 1)))
    assert "small.yaml" in str(error.value)


def test_sections_that_must_be_there(write):
    with pytest.raises(RecipeError, match="`tensors` is missing"):
        load_recipe(write("axes: {a: b}\n"))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(RecipeError, match="cannot read the recipe"):
        load_recipe(tmp_path / "none.yaml")


def test_recipes_that_do_not_mention_a_type_need_not_be_read():
    everything = model_types()
    for model_type, recipes in everything.items():
        assert [name for _, name in model_types(model_type)[model_type]] == [name for _, name in recipes]
    assert len(model_types("granitemoehybrid")) < len(everything) / 4

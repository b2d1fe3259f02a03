"""Matching tensors to rules."""

import pytest

from mupscale_cli.architecture.loading import load_recipe
from mupscale_cli.architecture.matching import match_rules
from mupscale_cli.errors import RecipeError


@pytest.fixture
def recipe(tmp_path):
    def make(*patterns, prefix='[""]'):
        lines = "".join(f'  "{pattern}": "a"\n' for pattern in patterns)
        file = tmp_path / "r.yaml"
        file.write_text(f"prefix: {prefix}\naxes: {{a: n}}\nwiden: [a]\ntensors:\n{lines}")
        return load_recipe(file)

    return make


def rules(recipe, names):
    return {name: match.rule.pattern.text for name, match in match_rules(recipe, names).items()}


def test_every_tensor_follows_one_rule(recipe):
    assert rules(recipe("x.{a,b}", "y"), ["x.b", "y", "x.a"]) == {"x.b": "x.{a,b}", "y": "y", "x.a": "x.{a,b}"}


def test_the_fewest_stars_win(recipe):
    matched = rules(recipe("*.*.w", "*.1.w", "x.1.w"), ["x.1.w", "y.1.w", "y.2.w"])
    assert matched == {"x.1.w": "x.1.w", "y.1.w": "*.1.w", "y.2.w": "*.*.w"}


def test_first_and_last_consider_all_names(recipe):
    matched = rules(recipe("{first}.w", "*.w", "{last}.w"), ["2.w", "10.w", "4.w", "9.w"])
    assert matched == {"2.w": "{first}.w", "10.w": "{last}.w", "4.w": "*.w", "9.w": "*.w"}


def test_the_prefix_that_matches_most_names_wins(recipe):
    prefixed = recipe("{prefix}a", "head?", prefix='[model., ""]')
    assert rules(prefixed, ["model.a", "head"]) == {"model.a": "{prefix}a", "head": "head?".removesuffix("?")}
    assert rules(prefixed, ["a"]) == {"a": "{prefix}a"}


def test_a_rule_that_matches_every_name_does_not_choose_the_prefix(recipe):
    """With the first prefixes, `{vision}**` matches all three names, and those of the text are of no rule."""
    prefixed = recipe(
        "{text}a", "{text}b", "{vision}**", prefix='[{text: model., vision: ""}, {text: llm., vision: eye.}]'
    )
    expected = {"llm.a": "{text}a", "llm.b": "{text}b", "eye.x": "{vision}**"}
    assert rules(prefixed, list(expected)) == expected


@pytest.mark.parametrize(
    ("patterns", "names", "message"),
    [
        (["a"], ["a", "b"], "matches `b`"),
        (["*.w", "{x,y}.*"], ["x.w"], "matches this rule and the one on line"),
        (["a", "b"], ["a"], r"r\.yaml:6: no tensor of the checkpoint"),
        (["l.*.a", "l.*.b"], ["l.0.a", "l.0.b", "l.1.a"], "the checkpoint has `l.1`"),
    ],
)
def test_unmatched_tensors_and_rules_are_refused(patterns, names, message, recipe):
    with pytest.raises(RecipeError, match=message):
        match_rules(recipe(*patterns), names)


def test_optional_rules_may_match_nothing(recipe):
    assert rules(recipe("a", "b?", "l.*.c?"), ["a"]) == {"a": "a"}


def test_a_rule_with_several_layouts_knows_the_tensors_of_the_block(tmp_path):
    (tmp_path / "r.yaml").write_text(
        "axes: {a: n}\nwiden: [a]\ntensors:\n"
        """  "l.*.q": [{when: 'block ~ "*.decay"', dims: a}, keep]\n  "l.*.{decay,e}?": a\n"""
    )
    matched = match_rules(load_recipe(tmp_path / "r.yaml"), ["l.0.q", "l.0.e", "l.1.q", "l.1.decay"])
    assert [match.block for match in matched.values()] == [("l.0.q", "l.0.e"), (), ("l.1.q", "l.1.decay"), ()]

"""Parsing the sections of recipes, and pointing at mistakes."""

import pytest

from mupscale_cli.architecture.document import parse_document
from mupscale_cli.architecture.parsing import parse_recipe
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


def parse(text):
    return parse_recipe("small", "small.yaml", "", parse_document(text, "small.yaml"), {})


def test_a_recipe_is_parsed():
    recipe = parse(SMALL)
    assert recipe.name == "small"
    assert recipe.model_types == ("small",)
    assert recipe.axis_names == ("embed", "ffn")
    assert [rule.key for rule in recipe.config] == ["hidden", "inner"]
    assert [rule.optional for rule in recipe.config] == [False, True]
    choices = recipe.tensors[1].choices
    assert [choice.condition and choice.condition.value for choice in choices] == ["wide", None]


def test_heads_stay_with_a_readout_that_stays():
    recipe = parse(f"{SMALL}  lm_head.weight: keep\n")
    (head,) = (rule for rule in recipe.implied if rule.pattern.text.endswith("}.weight"))
    assert [choice.value for choice in head.choices] == ["keep"]


def test_axes_say_what_norms_and_attention_do_with_them():
    text = SMALL.replace("about: the stream", "eps: norm_eps").replace(
        "inner or 4 * embed", "{size: inner, rotary: pairs}"
    )
    embed, ffn = parse(text).axes
    assert (embed.eps, embed.rotary, ffn.eps, ffn.rotary) == (("norm_eps",), None, None, "pairs")
    assert parse(SMALL.replace("about: the stream", "eps: 1e-6")).axes[0].eps == 1e-6
    assert parse(SMALL.replace("about: the stream", "eps: [norm.eps, head.eps]")).axes[0].eps == (
        "norm.eps",
        "head.eps",
    )
    assert parse(SMALL.replace("about: the stream", "norm: rms")).axes[0].norm == "rms"
    (requirement,) = parse(SMALL + 'requires: {"hidden == 4": too large}\n').requires
    assert requirement.reason == "too large"
    (cover,) = parse(SMALL + "covers: {not tiled: they are in tiles}\n").covers
    (note,) = parse(SMALL + "notes: {new.embed: it rounds}\n").notes
    assert (cover.reason, note.reason) == ("they are in tiles", "it rounds")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("widen:", "widenn:", "unknown section `widenn`.*did you mean `widen`"),
        ("[embed, ffn]\n", "[embed, fnn]\n", "fnn.*did you mean `ffn`"),
        ('"ffn, /embed"', '"fnn, /embed"', "small.yaml:9.*fnn"),
        ("embed^-1", "embd^-1", "embd"),
        ("size: hidden", "sise: hidden", "unknown key `sise`"),
        ("about: the stream", "rotary: thirds", "unknown order of rotary positions `thirds`.*halves"),
        ("about: the stream", "order: reversed", "unknown order of copies `reversed`.*tiled"),
        ("about: the stream", "order: tiled, rotary: halves", "`embed` have frequencies, so they cannot be tiled"),
        ("config: {hidden: embed", 'config: {"hidden[x]": embed', "places of an item at the end"),
        ("about: the stream", "norm: batch", "unknown norm `batch`.*layer"),
        ("about: the stream", "eps: a + b", "config key of the norms' eps"),
        ("widen: [embed, ffn]", "requires: {embed ==: no}", "expected a name"),
        ('"ffn, /embed"', "ffn, /embed | #embed^0.5", "quotes"),
        ("{size: hidden, about: the stream}", "{about: the stream}", "has no `size`"),
        ("when: wide, ", "", "needs both"),
        ('[{when: wide, dims: "embed, /ffn | embed^-1"}, "embed, /ffn"]', "[embed, embed]", "never used"),
        ("inner or 4", "inner or", "small.yaml:5"),
        ("match: {model_type: [small]}", "match: [small]", "small.yaml:2"),
        ("  embed: {size", "  1embed: {size", "1embed"),
        ("widen: [embed, ffn]", "widen: [embed]\nfixed: {embed: no}", "embed"),
        ("widen: [embed, ffn]", "widen: [embed]\nlinked: {embed: h * ffn}", "`?h`?"),
    ],
)
def test_mistakes_name_their_place(old, new, message):
    assert old in SMALL
    with pytest.raises(RecipeError, match=f"(?s){message}") as error:
        parse(SMALL.replace(old, new, 1))
    assert "small.yaml" in str(error.value)


def test_missing_sections_are_refused():
    with pytest.raises(RecipeError, match="`tensors` is missing"):
        parse("axes: {a: b}\n")

"""Expressions, layouts and name patterns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mupscale_cli.architecture.language import (
    AxisRef,
    Concatenation,
    Fixed,
    LanguageError,
    Product,
    axis_refs,
    evaluate,
    expand_name,
    parse_expression,
    parse_layout,
    parse_pattern,
    parse_scaled_expression,
    suggest,
)

OPERATORS = st.sampled_from(["+", "-", "*", "//"])
CONFIG = {
    "a": 6,
    "b": 4,
    "zero": 0,
    "name": "LlamaForCausalLM",
    "list": ["x", "yz"],
    "inner": {"a": 2},
    "nothing": None,
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a", 6),
        ("a + b * 2", 14),
        ("(a + b) * 2", 20),
        ("a // b * b", 4),
        ("a - b - 1", 1),
        ("-a + 10", 4),
        ("missing or b", 4),
        ("nothing or b", 4),
        ("zero or b", 4),
        ("a and b", 4),
        ("not missing", True),
        ("not a == b", True),
        ("a == 6 and b == 4", True),
        ("inner.a", 2),
        ("inner.missing", None),
        ("name ~ '*ForCausalLM'", True),
        ("list ~ 'y*'", True),
        ("missing ~ '*'", False),
        ('name == "LlamaForCausalLM"', True),
        ("a == 6.0", True),
    ],
)
def test_expressions(text, value):
    assert evaluate(parse_expression(text), CONFIG) == value


@given(
    st.recursive(
        st.integers(0, 9).map(str),
        lambda inner: st.tuples(inner, OPERATORS, inner).map(" ".join) | inner.map("({})".format),
    )
)
def test_arithmetic_is_that_of_python(text):
    try:
        expected = eval(text)  # noqa: S307 (digits and operators made above)
    except ZeroDivisionError:
        with pytest.raises(LanguageError, match="division by zero"):
            evaluate(parse_expression(text), {})
    else:
        assert evaluate(parse_expression(text), {}) == expected


@pytest.mark.parametrize(
    ("text", "message", "span"),
    [
        ("a // zero", "division by zero", (0, 9)),
        ("a + missing", "the config has no `missing`", (4, 11)),
        ("a * name", "expected a number", (4, 8)),
    ],
)
def test_expressions_that_have_no_value(text, message, span):
    with pytest.raises(LanguageError, match=message) as error:
        evaluate(parse_expression(text), CONFIG)
    assert error.value.span == span


@pytest.mark.parametrize(
    ("parse", "text", "message", "span"),
    [
        (parse_expression, "a +", "expected a name", (3, 4)),
        (parse_expression, "(a", "`\\(` is never closed", (0, 1)),
        (parse_expression, "a b", "expected the end", (2, 3)),
        (parse_expression, "a ! b", "unexpected character `!`", (2, 3)),
        (parse_expression, "(" * 60 + "a" + ")" * 60, "nested deeper", (51, 52)),
        (parse_layout, "a b", "two axes in one dimension", (2, 3)),
        (parse_layout, "(a, b)", "expected `\\)`", (2, 3)),
        (parse_layout, "[a + b", "`\\[` is never closed", (0, 1)),
        (parse_layout, "/(a /b)", "`/` inside of `/`", (4, 5)),
        (parse_layout, "a, 0", "whole number above 0", (3, 4)),
        (parse_layout, "a | ", "expected a power", (4, 5)),
        (parse_layout, "a | b^x", "expected an exponent", (6, 7)),
        (parse_layout, "a | offset b", "whole number after `offset`", (11, 12)),
        (parse_layout, "a,", "expected an axis", (2, 3)),
        (parse_pattern, "a.{b.weight", "`\\{` without its partner", (2, 3)),
        (parse_pattern, "a.{b c}.weight", "neither an axis", (2, 7)),
        (parse_pattern, "?", "matches nothing", (0, 1)),
        (parse_pattern, "{first}.{first}", "stands twice", (0, 15)),
    ],
)
def test_syntax_errors_point_at_their_place(parse, text, message, span):
    with pytest.raises(LanguageError, match=message) as error:
        parse(text)
    assert error.value.span == span


def test_layouts():
    layout = parse_layout("., /(kv g 3), [h d@d^-0.5 + h] | embed^-1 ffn offset 1")
    fixed, product, concatenation = layout.dims
    assert isinstance(fixed, Fixed)
    assert fixed.size is None
    assert isinstance(product, Product)
    assert [(item.name, item.contracted) for item in product.items[:2]] == [("kv", True), ("g", True)]
    assert product.items[2].size == 3
    assert isinstance(concatenation, Concatenation)
    first, second = concatenation.segments
    assert [(power.axis, float(power.exponent)) for power in first.powers] == [("d", -0.5)]
    assert isinstance(second.dim, AxisRef)
    assert second.powers == ()
    assert [(power.axis, float(power.exponent)) for power in layout.powers] == [("embed", -1), ("ffn", 1)]
    assert layout.offset == 1
    assert {ref.name for ref in axis_refs(layout) if isinstance(ref, AxisRef)} == {"kv", "g", "h", "d"}


def test_scalars_have_no_dimensions():
    assert parse_layout("").dims == ()
    assert parse_layout("| embed^-1").dims == ()


def test_config_values_may_be_scaled():
    expression, powers = parse_scaled_expression("logits_scaling | embed^-1")
    assert evaluate(expression, {"logits_scaling": 8}) == 8
    assert [(power.axis, float(power.exponent)) for power in powers] == [("embed", -1)]


@pytest.mark.parametrize(
    ("pattern", "prefix", "matches", "not_matches"),
    [
        (
            "{prefix}layers.*.w",
            "model.",
            ["model.layers.0.w", "model.layers.x1.w"],
            ["layers.0.w", "model.layers.0.1.w"],
        ),
        ("{k,v}_proj.weight", "", ["k_proj.weight", "v_proj.weight"], ["q_proj.weight", "kv_proj.weight"]),
        ("experts.{e}.w", "", ["experts.12.w"], ["experts.one.w", "experts..w"]),
        ("{first}.weight?", "", ["7.weight"], ["a.weight", "7.weight?"]),
        ("a.weight", "", ["a.weight"], ["aXweight", "a.weight.x"]),
        ("{prefix}**", "model.", ["model.a.b.c"], ["model.", "a.model.b"]),
        ("norms.{(kv g)}.w", "", ["norms.3.w"], ["norms.kv.w"]),
        ("{text.e}.w", "", ["3.w"], ["text.3.w"]),
    ],
)
def test_patterns(pattern, prefix, matches, not_matches):
    regex = parse_pattern(pattern).regex({"prefix": prefix})
    assert all(regex.fullmatch(name) for name in matches)
    assert not any(regex.fullmatch(name) for name in not_matches)


def test_a_question_mark_makes_a_tensor_optional():
    assert parse_pattern("a?").optional
    assert not parse_pattern("a").optional


def test_axes_in_names_are_renumbered():
    pattern = parse_pattern("layers.*.experts.{e}.heads.{/h}.w")
    match = pattern.regex({}).fullmatch("layers.10.experts.9.heads.0.w")
    assert expand_name(pattern, match, (19, 100)) == "layers.10.experts.19.heads.100.w"
    assert [(axis.names, axis.contracted) for axis in pattern.axes] == [(("e",), False), (("h",), True)]


def test_several_axes_may_count_the_same_tensors():
    (axis,) = parse_pattern("norms.{(kv text.g)}.weight").axes
    assert axis.names == ("kv", "text.g")
    text = "norms.{(kv text.g)}.weight"
    assert all(text[start:].startswith(name) for start, name in zip(axis.starts, axis.names, strict=True))


def test_words_of_several_prefixes_stand_for_theirs():
    pattern = parse_pattern("{text}norm.{head}", ("text", "head"))
    assert pattern.regex({"text": "a.", "head": "b"}).fullmatch("a.norm.b")
    assert not pattern.axes


@pytest.mark.parametrize(
    ("text", "expected"),
    [("sizes[1]", 5), ("sizes[9]", None), ("7 / 2", 3.5), ("true", True), ("not false", True), ("b.c[0] * 2", 4)],
)
def test_lists_fractions_and_constants(text, expected):
    assert evaluate(parse_expression(text), {"sizes": [4, 5], "b": {"c": [2]}}) == expected


def test_suggestions_name_the_nearest():
    assert suggest("fnn", ["ffn", "embed"]) == "did you mean `ffn`? known: embed, ffn"
    assert suggest("xyz", []) is None

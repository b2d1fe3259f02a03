"""Expressions over config keys and axes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mupscale_cli.architecture.expressions import evaluate, parse_expression
from mupscale_cli.architecture.syntax import LanguageError

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
        ("a * 1.3 // 1", 7),
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
def test_expressions_have_their_value(text, value):
    assert evaluate(parse_expression(text), CONFIG) == value


@given(
    st.recursive(
        st.integers(0, 9).map(str),
        lambda inner: st.tuples(inner, OPERATORS, inner).map(" ".join) | inner.map("({})".format),
    )
)
def test_arithmetic_agrees_with_python(text):
    try:
        expected = eval(text)  # noqa: S307 (only digits and operators from above)
    except ZeroDivisionError:
        with pytest.raises(LanguageError, match="division by zero"):
            evaluate(parse_expression(text), {})
    else:
        assert evaluate(parse_expression(text), {}) == expected


def test_results_beyond_64_bits_are_refused():
    expression = parse_expression("a + 1")
    assert evaluate(expression, {"a": 2**63 - 2}) == 2**63 - 1
    with pytest.raises(LanguageError, match="too large"):
        evaluate(expression, {"a": 2**63 - 1})


@pytest.mark.parametrize(
    ("text", "message", "span"),
    [
        ("a // zero", "division by zero", (0, 9)),
        ("a + missing", "the config has no `missing`", (4, 11)),
        ("a * name", "expected a number", (4, 8)),
    ],
)
def test_expressions_without_a_value_are_refused(text, message, span):
    with pytest.raises(LanguageError, match=message) as error:
        evaluate(parse_expression(text), CONFIG)
    assert error.value.span == span


@pytest.mark.parametrize(
    ("text", "expected"),
    [("sizes[1]", 5), ("sizes[9]", None), ("7 / 2", 3.5), ("true", True), ("not false", True), ("b.c[0] * 2", 4)],
)
def test_lists_fractions_and_constants(text, expected):
    assert evaluate(parse_expression(text), {"sizes": [4, 5], "b": {"c": [2]}}) == expected

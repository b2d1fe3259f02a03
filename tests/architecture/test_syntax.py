"""Syntax errors of expressions, layouts and patterns."""

import pytest

from mupscale_cli.architecture.expressions import parse_expression
from mupscale_cli.architecture.layouts import parse_layout
from mupscale_cli.architecture.patterns import parse_pattern
from mupscale_cli.architecture.syntax import LanguageError


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
        (parse_layout, "/(a /b)", "`/` inside another `/`", (4, 5)),
        (parse_layout, "a, 0", "whole number above 0", (3, 4)),
        (parse_layout, "a | ", "expected a power", (4, 5)),
        (parse_layout, "a | b^x", "expected an exponent", (6, 7)),
        (parse_layout, "a | offset b", "whole number after `offset`", (11, 12)),
        (parse_layout, "a,", "expected an axis", (2, 3)),
        (parse_pattern, "a.{b.weight", "unmatched `\\{`", (2, 3)),
        (parse_pattern, "a.{b c}.weight", "not an axis, a choice", (2, 7)),
        (parse_pattern, "?", "matches nothing", (0, 1)),
        (parse_pattern, "{first}.{first}", "appears twice", (0, 15)),
    ],
)
def test_syntax_errors_have_the_span_of_the_mistake(parse, text, message, span):
    with pytest.raises(LanguageError, match=message) as error:
        parse(text)
    assert error.value.span == span

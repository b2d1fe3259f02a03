"""Layouts of tensors, and scaled config values."""

import pytest

from mupscale_cli.architecture.expressions import evaluate
from mupscale_cli.architecture.layouts import (
    AxisRef,
    Concatenation,
    Fixed,
    Norm,
    Product,
    axis_refs,
    parse_layout,
    parse_scaled_expression,
)
from mupscale_cli.architecture.syntax import LanguageError


def test_a_layout_is_parsed():
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


def test_gains_say_what_their_norm_averages_and_what_it_follows():
    norm = parse_layout("embed | embed^-1 #embed^0.5 offset 1 rms of mlp.down_proj").norm
    assert norm == Norm("rms", "mlp.down_proj", (37, 57))
    assert parse_layout("embed | layer").norm == Norm("layer", None, (8, 13))
    assert parse_layout("embed").norm is None
    grouped = parse_layout("(g p) | rms per g of in_proj")
    assert grouped.norm.per.name == "g"
    assert [ref.name for ref in axis_refs(grouped)] == ["g", "p", "g"]


def test_powers_of_copies_and_of_sizes_are_told_apart():
    powers = parse_layout("(h d) | d^-1 #d^0.5").powers
    assert [(power.axis, float(power.exponent), power.of_size) for power in powers] == [
        ("d", -1, False),
        ("d", 0.5, True),
    ]
    (segment, _) = parse_layout("[h d@#d^0.5 + h d]").dims[0].segments
    assert segment.powers[0].of_size
    assert segment.powers[0].span == (6, 11)  # of the name, which composites replace


@pytest.mark.parametrize(
    ("text", "message", "span"),
    [
        ("embed | rms of", "the module in front of the norm", (14, 15)),
        ("embed | # rms", "expected an axis after `#`", (10, 13)),
        ("embed | rms embed^-1", "expected the end", (12, 17)),
        ("rms, embed", "expected an axis", (0, 3)),
    ],
)
def test_a_mistake_in_a_norm_or_a_power_is_pointed_at(text, message, span):
    with pytest.raises(LanguageError, match=message) as error:
        parse_layout(text)
    assert error.value.span == span

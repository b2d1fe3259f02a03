"""Layouts of tensors, and scaled config values."""

from mupscale_cli.architecture.expressions import evaluate
from mupscale_cli.architecture.layouts import (
    AxisRef,
    Concatenation,
    Fixed,
    Product,
    axis_refs,
    parse_layout,
    parse_scaled_expression,
)


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

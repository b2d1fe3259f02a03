"""Maps of dimensions, compared with an enumeration of every unit."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mupscale_cli.architecture.layouts import AxisRef, Concatenation, Fixed, Product, parse_layout
from mupscale_cli.plan.copies import Axis
from mupscale_cli.plan.dims import LayoutError, known_size, map_dim, power_scale, solve_size

AXES = {
    "a": Axis("a", 2, 3),
    "b": Axis("b", 3, 1),
    "c": Axis("c", 2, 2),
    "v": Axis("v", None, 2),
}


def units(dim):
    """Enumerate the elements of a dimension by their coordinates: one (position, index) per axis."""
    match dim:
        case Fixed():
            return [((dim.span, i),) for i in range(dim.size)]
        case AxisRef():
            return [((dim.span, i),) for i in range(AXES[dim.name].size)]
        case Product():
            elements = [()]
            for item in dim.items:
                elements = [(*outer, *inner) for outer in elements for inner in units(item)]
            return elements
        case Concatenation():
            return [element for segment in dim.segments for element in units(segment.dim)]


def wide_units(dim):
    """Enumerate the elements of the wide dimension by the narrow coordinates that they copy."""
    match dim:
        case Fixed():
            return units(dim)
        case AxisRef():
            axis = AXES[dim.name]
            return [((dim.span, i // axis.factor),) for i in range(axis.size * axis.factor)]
        case Product():
            elements = [()]
            for item in dim.items:
                elements = [(*outer, *inner) for outer in elements for inner in wide_units(item)]
            return elements
        case Concatenation():
            return [element for segment in dim.segments for element in wide_units(segment.dim)]


def sources(dim_map):
    """Return the narrow element that each wide element copies according to the strips; None if they omit it."""
    found = [None] * dim_map.wide_size
    for strip in dim_map.strips:
        elements = [(strip.offset, strip.wide_offset)]
        for digit in strip.digits:
            elements = [
                (s + unit * digit.stride, w + (unit * digit.units.copies + copy) * digit.wide_stride)
                for s, w in elements
                for unit in range(digit.units.size)
                for copy in range(digit.units.copies)
            ]
        for source, wide in elements:
            assert found[wide] is None
            found[wide] = source
    return found


atoms = st.sampled_from(["a", "b", "c", "2", "/a", "/c"])
dims = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3).map(lambda items: f"({' '.join(items)})")
        | st.lists(inner, min_size=1, max_size=3).map(lambda items: f"[{' + '.join(items)}]")
    ),
    max_leaves=6,
)


@given(dims)
def test_strips_agree_with_an_enumeration_of_units(text):
    (dim,) = parse_layout(text).dims
    narrow, wide = units(dim), wide_units(dim)
    mapped = map_dim(dim, AXES, len(narrow))
    assert (mapped.size, mapped.wide_size) == (len(narrow), len(wide))
    assert [narrow[source] for source in sources(mapped)] == wide


def test_copies_are_side_by_side():
    (dim,) = parse_layout("a").dims
    assert sources(map_dim(dim, AXES, 2)) == [0, 0, 0, 1, 1, 1]


def test_pieces_and_multiplicity():
    (dim,) = parse_layout("(/a c)").dims
    (strip,) = map_dim(dim, AXES, 4).strips
    assert (strip.pieces, strip.multiplicity) == (3, 6)


def test_the_scale_of_a_segment():
    (dim,) = parse_layout("[b a@a^-1 + c]").dims
    first, second = map_dim(dim, AXES, 8).strips
    assert Fraction(first.scale).limit_denominator() == Fraction(1, 3)
    assert second.scale == 1


def test_an_axis_of_varying_size_takes_its_size_from_the_dimension():
    (dim,) = parse_layout("(b v)").dims
    mapped = map_dim(dim, AXES, 12)
    assert mapped.wide_size == 24
    assert solve_size(dim, AXES, 12) == ({"v"}, 4)


@pytest.mark.parametrize("text", ["(v w)", "[v + w]", "(v v)"])
def test_a_dimension_with_several_unknowns_solves_none(text):
    (dim,) = parse_layout(text).dims
    unknown = {**AXES, "w": Axis("w", None, 2)}
    assert solve_size(dim, unknown, 16) == ({"v", "w"} if "w" in text else {"v"}, None)


def test_a_segment_of_any_size_may_be_absent():
    (dim,) = parse_layout("[a + .]").dims
    with_rest, without = (map_dim(dim, AXES, AXES["a"].size + rest) for rest in (3, 0))
    assert with_rest.wide_size == without.wide_size + 3
    assert len(with_rest.strips) == len(without.strips) + 1
    with pytest.raises(LayoutError, match="cannot have size"):
        map_dim(dim, AXES, AXES["a"].size - 1)


def test_the_size_of_a_dimension_needs_every_axis():
    assert known_size(parse_layout("[(a b) + c + 1]").dims[0], AXES) == 9
    assert known_size(parse_layout("(b v)").dims[0], AXES) is None


def test_an_unknown_axis_has_at_least_one_unit():
    (dim,) = parse_layout("[b + v]").dims
    assert solve_size(dim, AXES, 4) == ({"v"}, 1)
    with pytest.raises(LayoutError, match="cannot have size 3"):
        solve_size(dim, AXES, 3)


@pytest.mark.parametrize(("text", "size"), [("a", 3), ("(a b)", 5), ("[a + b]", 4), ("3", 4), ("(b v)", 10)])
def test_impossible_sizes_are_refused(text, size):
    (dim,) = parse_layout(text).dims
    with pytest.raises(LayoutError):
        map_dim(dim, AXES, size)


def test_whole_powers_are_exact():
    assert power_scale(parse_layout("| a^-1").powers, AXES) == 1 / 3
    assert power_scale(parse_layout("| a c^-1").powers, AXES) == 1.5
    assert power_scale(parse_layout("| c^-0.5").powers, AXES) == pytest.approx(0.5**0.5, rel=1e-15)

"""Copy maps: which old unit each new unit copies."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mupscale_cli.plan.copies import FRESH, Axis, CopyMap, drawn_map, padded_map
from mupscale_cli.plan.methods import METHODS


def test_interleaved_copies_are_side_by_side():
    assert CopyMap(3, 2).all_sources == (0, 0, 1, 1, 2, 2)


def test_tiled_copies_are_end_to_end():
    assert CopyMap(3, 2, "tiled").all_sources == (0, 1, 2, 0, 1, 2)


def test_an_axis_can_demand_that_the_old_units_stay_in_front():
    """Whatever the method, also in front of fresh units."""
    axis = Axis("a", 3, 2, fresh=1, order="tiled")
    assert axis.copy_map().all_sources == (0, 1, 2, 0, 1, 2, FRESH)
    assert axis.keeps_order
    assert not Axis("a", 3, 2, isometric=True, order="tiled").keeps_order


@pytest.mark.parametrize(("method", "fits"), [("mupscale", True), ("net2net", False), ("hyperclone", False)])
@pytest.mark.parametrize("size", [3, None])
def test_an_axis_can_demand_that_copies_stand_beside_their_unit(method, fits, size):
    """For tensors of several widths that the model joins, whose own sizes the axis does not have."""
    axis = Axis("a", size, 2, METHODS[method](), order="adjacent")
    assert axis.keeps_order == fits
    assert Axis("a", size, 2, METHODS[method]()).keeps_order


def test_padded_maps_leave_new_units_without_a_source():
    units = padded_map(2, 3)
    assert units.all_sources == (0, 1, FRESH, FRESH, FRESH, FRESH)
    assert units.fresh == (2, 3, 4, 5)
    assert units.positions == ((0,), (1,))


@given(st.sampled_from(sorted(METHODS)), st.integers(1, 9), st.integers(1, 4))
def test_positions_invert_sources(method, size, factor):
    units = Axis("a", size, factor, METHODS[method]()).copy_map()
    assert units.wide_size == size * factor == len(units.all_sources)
    for unit, positions in enumerate(units.positions):
        assert [units.all_sources[position] for position in positions] == [unit] * len(positions)
    assert sum(map(len, units.positions)) + len(units.fresh) == units.wide_size


@given(st.integers(1, 30), st.integers(2, 4), st.integers(0, 5))
def test_random_maps_keep_the_old_units_and_copy_each_equally_often(size, factor, seed):
    units = drawn_map(Axis("a", size, factor), size, seed)
    assert units.all_sources[:size] == tuple(range(size))
    assert set(Counter(units.all_sources).values()) == {factor}
    assert units.is_even


def test_uneven_random_maps_copy_some_units_more_often():
    units = drawn_map(Axis("ffn", 20, 2, uneven=True), 20, 0)
    assert not units.is_even
    assert set(units.all_sources) == set(range(20))


def test_random_maps_depend_only_on_seed_axis_and_size():
    """The values are pinned, since a verification draws the map of an older checkpoint again."""
    embed = Axis("embed", None, 2)
    units = drawn_map(embed, 5, 7)
    assert units == drawn_map(embed, 5, 7)
    assert units.all_sources[5:] == (3, 2, 1, 0, 4)
    assert units != drawn_map(embed, 5, 8)
    assert units != drawn_map(Axis("ffn", None, 2), 5, 7)


@pytest.mark.parametrize("method", METHODS)
def test_axes_of_factor_1_are_copied_unchanged(method):
    assert Axis("a", 4, 1, METHODS[method]()).copy_map() == CopyMap(4)

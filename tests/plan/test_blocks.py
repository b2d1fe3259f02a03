"""Where new blocks go, and which old blocks they copy."""

import itertools

import pytest

from mupscale_cli.errors import PlanError
from mupscale_cli.plan.blocks import BlockMap, place_blocks


@pytest.mark.parametrize(
    ("sizes", "options", "sources", "new"),
    [
        ((3, 6), {}, (0, 0, 1, 1, 2, 2), (1, 3, 5)),
        ((4, 6), {}, (0, 0, 1, 2, 2, 3), (1, 4)),
        ((2, 5), {}, (0, 0, 0, 1, 1), (1, 2, 4)),
        ((3, 5), {"where": "start"}, (0, 0, 0, 1, 2), (0, 1)),
        ((3, 5), {"where": "end"}, (0, 1, 2, 2, 2), (3, 4)),
        ((3, 5), {"where": "0,3"}, (0, 0, 1, 1, 2), (0, 3)),
        ((3, 5), {"where": "end", "stacked": True}, (0, 1, 2, 0, 1), (3, 4)),
        ((4, 8), {"unit": 2}, (0, 1, 0, 1, 2, 3, 2, 3), (2, 3, 6, 7)),
        ((2, 3), {"unit": 3}, (0, 1, 0), (2,)),  # fewer blocks than the pattern has
        ((5, 7), {"unit": 2}, (0, 1, 0, 1, 2, 3, 4), (2, 3)),
        ((4, 6), {"where": "end", "unit": 2}, (0, 1, 2, 3, 2, 3), (4, 5)),
        ((4, 6), {"where": "start", "unit": 2}, (0, 1, 0, 1, 2, 3), (0, 1)),
    ],
)
def test_new_blocks_copy_their_neighbors(sizes, options, sources, new):
    assert place_blocks(*sizes, **options) == BlockMap(sources, new)


@pytest.mark.parametrize("where", ["interleaved", "start", "end"])
@pytest.mark.parametrize("unit", [1, 2, 3])
def test_old_blocks_keep_their_order_and_patterns_their_period(where, unit):
    for size, runs in itertools.product(range(unit, 9), range(4)):
        units = place_blocks(size, size + runs * unit, where, unit)
        assert (units.size, units.wide_size) == (size, size + runs * unit)
        assert [units.sources[position] for position in units.old] == list(range(size))
        assert all(position % unit == source % unit for position, source in enumerate(units.sources))


def test_interleaving_spreads_new_blocks_evenly():
    for size, wide_size in itertools.combinations(range(1, 30), 2):
        counts = [len(positions) for positions in place_blocks(size, wide_size).positions]
        assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(
    ("where", "message"),
    [("middle", "unknown place `middle`"), ("1", "names 1 position for 2 new blocks"), ("1,9", "names 2 positions")],
)
def test_impossible_places_are_refused(where, message):
    with pytest.raises(PlanError, match=message):
        place_blocks(3, 5, where)


def test_stacks_never_shrink():
    with pytest.raises(PlanError, match="3 blocks cannot become 2"):
        place_blocks(3, 2)

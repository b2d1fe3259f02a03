"""Values that name units: each unit becomes its copies, each block moves."""

import pytest

from mupscale_cli.architecture.document import Origin, Text
from mupscale_cli.architecture.types import UnitsRule
from mupscale_cli.architecture.units import parse_template
from mupscale_cli.errors import PlanError
from mupscale_cli.plan.blocks import place_blocks
from mupscale_cli.plan.copies import Axis
from mupscale_cli.plan.methods import HyperClone
from mupscale_cli.plan.units import map_units, rewrite_units

HEADS = [Axis("h", 4, 2), Axis("kv", 2, 2), Axis("g", 2, 3)]
DEEP = {"layers": place_blocks(3, 6)}  # 0 0 1 1 2 2: every second block is new


def rewrite(template, value, axes=HEADS, blocks=DEEP):
    rule = UnitsRule("key", "file.json", parse_template(template), Text(template, Origin("recipe", 1, 0, "")))
    changes = rewrite_units([rule], {"key": value}, map_units(axes, blocks), "file.json")
    return changes[0].after if changes else value


@pytest.mark.parametrize(
    ("template", "value", "expected"),
    [
        ("[[layers, h]]", [[0, 3], [2, 1]], [[0, 6], [0, 7], [4, 2], [4, 3]]),
        ("[(kv g)]", [0, 3], [0, 1, 2, 6, 7, 8, 15, 16, 17, 21, 22, 23]),
        ("h", 3, 6),
        ("[like layers]", [0, 2], [0, 1, 4, 5]),
        ("like layers", 2, 5),
        ("[layers]", [0, 2], [0, 4]),
        ("[layers]", [-1], [-2]),
        ("[after layers]", [0, 1, 3, -1, -2], [0, 2, 6, -1, -3]),
        ("[after layers]", -2, -3),
        ("[after layers]", ["stem", "stage3"], ["stem", "stage6"]),
        ("[after layers]", "low", "low"),
        ("places layers", ["stem", "stage1", "stage2", "stage3"], ["stem", *(f"stage{n}" for n in range(1, 7))]),
        ("[. per layers]", ["a", "b", "c"], ["a", "a", "b", "b", "c", "c"]),
        ("[[. per h] per layers]", [[1, 2, 3, 4]] * 3, [[1, 1, 2, 2, 3, 3, 4, 4]] * 6),
        ("first layers", 1, 2),
        ("runs layers", [[["a", "b"], 1], [["c"], 1]], [[["a", "a", "b", "b", "c", "c"], 1]]),
    ],
)
def test_values_follow_the_units(template, value, expected):
    assert rewrite(template, value) == expected


def test_numbers_follow_the_copy_map_of_the_method():
    assert rewrite("[h]", [1], [Axis("h", 4, 2, arrangement=HyperClone())]) == [1, 5]


def test_every_listed_unit_gets_equally_many_copies():
    """A mean over the listed heads stays the same."""
    axis = Axis("h", 3, 1, extra=1)
    assert rewrite("[h]", [0, 2], [axis], {}) == [0, 2]
    assert rewrite("[h]", [0, 2], [Axis("h", 3, 2, fresh=1)], {}) == [0, 1, 4, 5]


def test_values_stay_if_no_unit_changes():
    assert rewrite("[[layers, h]]", [[9, 9]], [Axis("h", 4)], {}) == [[9, 9]]
    assert rewrite("[h]", None) is None


@pytest.mark.parametrize(
    ("template", "value", "message"),
    [
        ("[[layers, h]]", [[0, 4]], "the number 4, but `h` has 4"),
        ("[[layers, h]]", [[0]], r"contains \[0\], expected a list of 2"),
        ("[h]", [True], "contains True, expected a whole number"),
        ("[. per layers]", ["a"], "has 1 entries for 3 blocks of `layers`"),
        ("first layers", 2, "first 2 blocks of `layers` differ"),
    ],
)
def test_values_that_name_no_unit_are_refused(template, value, message):
    blocks = {"layers": place_blocks(3, 5, "end", stacked=True)} if template.startswith("first") else DEEP
    with pytest.raises(PlanError, match=f"`key` in file.json .*{message}"):
        rewrite(template, value, blocks=blocks)


def test_fresh_units_have_no_entry():
    with pytest.raises(PlanError, match="fresh units have none"):
        rewrite("[. per h]", [1, 2, 3, 4], [Axis("h", 4, 1, fresh=2)])

"""Conditions of a recipe: on the source, on the widened config, and of its notes."""

import pytest

from mupscale_cli.architecture.loading import read_draft
from mupscale_cli.dtypes import TensorSpec
from mupscale_cli.errors import PlanError, SizeError
from mupscale_cli.plan import Request, make_plan

RECIPE = """
axes: {a: width, b: inner}
widen: [a, b]
config: {width: a, inner: b}
covers: {"not tiled and not tensors ~ 'tile*'": its units are in tiles}
requires:
  "width * 3 == inner": "three neurons for each unit"
  "not computed or new.a == 0": "it computes positions from the width"
notes: {new.a: "it rounds the width", "width == 4": "four units"}
tensors: {"up": "b, /a", "{tile,more}?": a}
"""


def plan(axes=None, names=("up",), **config):
    config = {"width": 2, "inner": 6, **config}
    shapes = {"up": (config["inner"], config["width"])}
    specs = [TensorSpec(name, "F32", shapes.get(name, (2,))) for name in names]
    return make_plan(read_draft(RECIPE, "mine"), specs, config, Request(axes=axes or {}))


@pytest.mark.parametrize("axes", [None, {"b": 2}, {"a": 2, "b": 2}])
@pytest.mark.parametrize("source", [{"tiled": True}, {"names": ("up", "tile")}, {"names": ("up", "tile", "unknown")}])
def test_a_source_that_the_recipe_does_not_cover_is_refused_whatever_grows(source, axes):
    """Before its tensors are matched: those that no rule describes are the reason why it is not covered."""
    with pytest.raises(PlanError, match=r"`mine` does not cover this model.*: its units are in tiles"):
        plan(axes, **source)


def test_a_refusal_names_the_setting_that_is_not_covered():
    with pytest.raises(PlanError, match="does not cover this model, whose config has `tiled: true`: its units"):
        plan(tiled=True)


def test_a_requirement_that_the_source_breaks_does_not_count():
    with pytest.raises(SizeError, match="three neurons for each unit"):
        plan({"a": 2})
    assert plan({"a": 2}, inner=5).config == {"width": 4, "inner": 5}


def test_a_requirement_may_speak_of_the_growth_of_one_axis():
    assert plan({"b": 2}, inner=5, computed=True).config["inner"] == 10
    with pytest.raises(SizeError, match="computes positions"):
        plan({"a": 2}, inner=5, computed=True)


@pytest.mark.parametrize(
    ("axes", "notes"),
    [({"b": 2}, ()), ({"a": 2}, ("it rounds the width", "four units")), ({"a": 3}, ("it rounds the width",))],
)
def test_notes_hold_for_the_widened_config(axes, notes):
    assert plan(axes, inner=5).notes == notes

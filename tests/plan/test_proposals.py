"""Shapes near a number of parameters: friendly sizes, in proportion, counted exactly."""

import math

import pytest
import shapes

from mupscale_cli.architecture.loading import load_recipe, recipe_for
from mupscale_cli.errors import PlanError
from mupscale_cli.plan import IDENTITY, Request, Size, make_plan
from mupscale_cli.plan.proposals import parameter_counter, propose, proposed_shapes


def narrow(name, request=IDENTITY):
    config = shapes.full_config(name)
    return make_plan(load_recipe(recipe_for(config), config), shapes.specs(name), config, request)


def found(name, parameters, request=None):
    return proposed_shapes(narrow(name), parameters, request or Request())


@pytest.mark.parametrize("name", ["Qwen3-0.6B", "gpt2", "gemma-3-270m", "pythia-70m", "ViT-S"])
def test_parameters_are_counted_as_in_the_plan(name):
    plan = narrow(name)
    counter = parameter_counter(plan)
    assert counter.count({}) == plan.num_parameters[0]
    wide = narrow(name, Request(2))
    sizes = {axis.name: axis.wide_size for axis in wide.axes if axis.name in plan.recipe.widen}
    assert counter.count(sizes) == wide.num_parameters[1]


def test_linked_axes_follow_in_the_count():
    plan = narrow("gpt2")
    counter = parameter_counter(plan)
    wide = narrow("gpt2", Request(3))
    assert counter.count({"h": 36, "ffn": 9216}) == wide.num_parameters[1]
    assert counter.with_linked({"h": 36}) == {"h": 36, "embed": 2304}


@pytest.mark.parametrize(
    ("name", "parameters", "first"),
    [
        ("Qwen3-0.6B", 1.2e9, {"embed": 1536, "kv": 12, "ffn": 4480}),
        ("SmolLM2-135M", 360e6, {"embed": 1024, "kv": 5, "ffn": 2560}),
        ("ViT-S", 86e6, {"h": 12, "ffn": 3072, "embed": 768}),
    ],
)
def test_the_first_shape_is_near_in_friendly_sizes_and_proportions(name, parameters, first):
    plan = narrow(name)
    counter = parameter_counter(plan)
    shape, *others = found(name, parameters)
    assert shape == first
    assert abs(counter.count(shape) / parameters - 1) < 0.02
    assert all(shape[axis] % 64 == 0 for axis in ("embed", "ffn") if axis in shape)

    def cost(sizes):
        ratios = [size / counter.axes[axis].size for axis, size in sizes.items()]
        return abs(math.log(counter.count(sizes) / parameters)) + math.log(max(ratios) / min(ratios)) / 4

    assert all(cost(shape) <= cost(other) for other in others)


def test_a_deeper_model_is_counted_with_its_blocks():
    deeper = narrow("Qwen3-0.6B", Request(layers=Size(36)))
    assert parameter_counter(deeper).count({}) == deeper.num_parameters[1] > deeper.num_parameters[0]


def test_a_named_axis_is_not_searched():
    assert all(set(shape) == {"embed", "ffn"} for shape in found("Qwen3-0.6B", 1.2e9, Request(axes={"kv": 1})))
    with pytest.raises(PlanError, match="finds no axis to grow"):
        found("Qwen3-0.6B", 1.2e9, Request(axes={"embed": 1, "kv": 1, "ffn": 1}))


def test_shapes_that_cannot_be_planned_are_skipped_and_the_best_five_returned():
    plan = narrow("Qwen3-0.6B")
    asked = []

    def planned(request):
        asked.append(request.sizes)
        if len(asked) == 1:
            raise PlanError("not this one")
        return request.sizes

    best = propose(plan, 1.2e9, Request(), planned)
    assert list(best) == asked[1:]
    assert len(best) == 5


def test_a_number_that_cannot_be_reached_is_refused():
    plan = narrow("Qwen3-0.6B")

    def refuse(_request):
        raise PlanError("no multiple")

    with pytest.raises(PlanError, match=r"no shape with about 1\.2 B .* from 596 M: no multiple"):
        propose(plan, 1.2e9, Request(), refuse)
    with pytest.raises(PlanError, match="asks for 100 M parameters, but without growing wider, the model has 596 M"):
        propose(plan, 1e8, Request(), refuse)

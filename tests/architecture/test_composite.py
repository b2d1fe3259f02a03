"""Composite recipes: parts with their own axes, config keys and names."""

import pytest

from mupscale_cli.architecture import loading
from mupscale_cli.architecture.loading import load_recipe, recipe_for
from mupscale_cli.dtypes import TensorSpec
from mupscale_cli.errors import PlanError, RecipeError
from mupscale_cli.plan import Request, Size, make_plan

INNER = """
match: {model_type: [inner]}
defaults: {wide: false}
define: {double: 2 * n}
axes: {a: n, e: {size: groups, about: groups}}
widen: [a]
linked: {e: a}
config: {n: a, groups?: e, scale: [{when: wide, value: "scale | a"}, scale]}
covers: {"not scale == 9": other scales}
requires: {"fresh.a == 0 or n == 4": odd sizes}
notes: {"new.a": more of them}
prefix: [model., ""]
tensors:
  "{prefix}w.{e}": [{when: double == scale, dims: "/a"}, "a"]
  "head.w?": "a"
"""
OTHER = """
match: {model_type: [other]}
axes: {b: n}
widen: [b]
config: {n: b}
tensors: {"{prefix}v": "/b"}
"""
OUTER = """
match: {model_type: [outer]}
prefix: [{text: t., head: h., vision: v.}, {text: x., head: "", vision: y.}]
parts:
  text: {config: [text_config, ""], recipe: inner, prefix: text, names: head}
  vision: {config: vision_config, recipe: inner, prefix: vision}
widen: [text]
tensors: {bridge: "text.a, /vision.b"}
"""
CONFIG = {"text_config": {"n": 2, "groups": 2, "scale": 3}, "vision_config": {"model_type": "other", "n": 5}}


@pytest.fixture
def recipes(tmp_path, monkeypatch):
    for name, text in (("inner", INNER), ("other", OTHER), ("outer", OUTER)):
        (tmp_path / f"{name}.yaml").write_text(text)
    match = loading._Match("other", {"model_type": ("other",)}, None, ())
    monkeypatch.setattr(loading, "_match_sections", lambda: [match])
    return tmp_path


def plan(recipes, factors, config=CONFIG, names=("t.w.0", "t.w.1", "h.head.w", "v.v", "bridge")):
    shapes = {"w.0": (2,), "w.1": (2,), "head.w": (2,), "v": (5,), "bridge": (2, 5)}
    plain = {name: name[2:] if name[:2] in ("t.", "h.", "v.", "x.", "y.") else name for name in names}
    specs = [TensorSpec(name, "F32", shapes[plain[name]]) for name in names]
    recipe = load_recipe(recipes / "outer.yaml", config)
    return make_plan(recipe, specs, config, Request(axes=factors))


def test_parts_have_their_own_axes_config_and_names(recipes):
    wide_plan = plan(recipes, {"text.a": 3, "text.e": 3, "vision": 2})
    assert wide_plan.factors == {"text.a": 3, "text.e": 3, "vision.b": 2}
    assert wide_plan.config == {
        "text_config": {"n": 6, "groups": 6, "scale": 3},
        "vision_config": {"model_type": "other", "n": 10},
    }
    wide = {tensor.target.name: (tensor.target.shape, tensor.coefficient) for tensor in wide_plan.tensors}
    assert wide["h.head.w"] == ((6,), 1)
    assert wide["bridge"] == ((6, 10), 1 / 2)
    assert wide["v.v"] == ((10,), 1 / 2)
    assert sorted(name for name in wide if name.startswith("t.w")) == [f"t.w.{i}" for i in range(6)]


def test_parts_name_their_parameters(recipes):
    """A part's own names begin with its prefix, or with what the composite renames the whole part to."""
    with (recipes / "inner.yaml").open("a") as file:
        file.write("""
parameters:
  "{prefix}w.{e}": {name: "{prefix}joined", dims: "e, a"}
  "{prefix}old.*": "{prefix}new.*"
  "head.w": head.v
""")
    with (recipes / "outer.yaml").open("a") as file:
        file.write("""
parameters: {"{text}**": "model.text.*"}
""")
    with (recipes / "other.yaml").open("a") as file:
        file.write("""
parameters: {"{prefix}old.*": "{prefix}new.*"}
""")
    recipe = load_recipe(recipes / "outer.yaml", CONFIG)
    assert [name for name, _, _ in recipe.other_parameters("t.w.1")] == ["model.text.joined"]
    loaded = {
        "t.old.2": "model.text.new.2",
        "t.other": "model.text.other",
        "v.old.2": "v.new.2",
        "h.head.w": "h.head.w",
    }
    assert {name: recipe.parameter_name(name) for name in loaded} == loaded


def test_a_part_may_have_names_of_another_spelling(recipes):
    """Behind its prefix, by a word that every prefix of the composite spells in its own way."""
    outer = (recipes / "outer.yaml").read_text()
    outer = outer.replace("{text: t.,", "{text: t., rows: u.,").replace("{text: x.,", "{text: x., rows: w.,")
    outer = outer.replace("names: head}", 'names: head, renames: {w.: "{rows}"}}')
    (recipes / "outer.yaml").write_text(outer)
    recipe = load_recipe(recipes / "outer.yaml", CONFIG)
    assert "{text}{rows}{text.e}" in [rule.pattern.text for rule in recipe.tensors]
    (recipes / "outer.yaml").write_text(outer.replace('{w.: "{rows}"}', "w."))
    with pytest.raises(RecipeError, match="expected a mapping of beginnings of names"):
        load_recipe(recipes / "outer.yaml", CONFIG)


def test_an_axis_of_a_part_may_be_one_of_another_part(recipes):
    """An encoder that writes into the language model's stream: its outputs grow and scale with the stream."""
    outer = (recipes / "outer.yaml").read_text()
    outer = outer.replace("vision: {config: vision_config,", "vision: {axes: {a: text.a}, config: vision_config,")
    (recipes / "outer.yaml").write_text(outer.replace("/vision.b", "/vision.e"))
    config = {**CONFIG, "vision_config": {"n": 2, "groups": 5, "scale": 3}}
    names = ("t.w.0", "t.w.1", *(f"v.w.{i}" for i in range(5)), "bridge")
    recipe = load_recipe(recipes / "outer.yaml", config)
    assert [axis.name for axis in recipe.axes if axis.name.startswith("vision.")] == ["vision.e"]
    assert recipe.groups["vision"] == ()
    shapes = {"bridge": (2, 5)}
    specs = [TensorSpec(name, "F32", shapes.get(name, (2,))) for name in names]
    wide = make_plan(recipe, specs, config, Request(axes={"text.a": 2, "text.e": 2, "vision.e": 2}))
    assert wide.config["vision_config"] == {"n": 4, "groups": 10, "scale": 3}
    assert {tensor.target.shape for tensor in wide.tensors} == {(4,), (4, 10)}
    assert {str(tensor.layout) for tensor in wide.tensors if tensor.target.name.startswith("v.")} == {"text.a"}


def test_requirements_name_the_fresh_units_of_a_parts_axes(recipes):
    (requirement,) = load_recipe(recipes / "outer.yaml", CONFIG).requires
    assert requirement.text.value == "fresh.text.a == 0 or text_config.n == 4"


def test_a_part_covers_what_its_recipe_covers_and_has_its_notes(recipes):
    assert plan(recipes, {"text.a": 2, "text.e": 2}).notes == ("more of them",)
    assert plan(recipes, {"vision": 2}).notes == ()
    other = {**CONFIG, "text_config": {**CONFIG["text_config"], "scale": 9}}
    with pytest.raises(PlanError, match=r"model, whose config has `text_config\.scale: 9`: other scales"):
        plan(recipes, {"vision": 2}, other)


def test_prefixes_of_the_parts_belong_together(recipes):
    wide_plan = plan(recipes, {"vision": 2}, names=("x.w.0", "x.w.1", "head.w", "y.v", "bridge"))
    assert {tensor.target.name for tensor in wide_plan.tensors} >= {"y.v", "head.w"}
    with pytest.raises(RecipeError, match=r"no rule of .* matches `y\.v`"):
        plan(recipes, {"vision": 2}, names=("t.w.0", "t.w.1", "h.head.w", "y.v", "bridge"))


def test_a_flat_config_is_the_part_itself(recipes):
    flat = {**CONFIG["text_config"], "vision_config": CONFIG["vision_config"]}
    wide_plan = plan(recipes, {"text.a": 2, "text.e": 2}, flat)
    assert wide_plan.config["n"] == 4
    assert "text_config" not in wide_plan.config


def test_a_part_can_be_widened_like_an_axis(recipes):
    recipe = load_recipe(recipes / "outer.yaml", CONFIG)
    assert recipe.widen == ("text.a",)
    assert recipe.groups == {"text": ("text.a",), "vision": ("vision.b",)}
    assert plan(recipes, {"vision": 4}).factors == {"vision.b": 4}
    with pytest.raises(PlanError, match="has no axis `sound`, `light`, nor"):
        plan(recipes, {"sound": 2, "vision": 4, "light": 2})
    with pytest.raises(PlanError, match="has no axis `sound`, nor"):
        plan(recipes, {"sound": 2})
    with pytest.raises(PlanError, match="`vision` is a part of the model, which has no size of its own"):
        plan(recipes, {"vision": Size(10)})


def test_a_linked_axis_that_is_not_named_follows(recipes):
    assert plan(recipes, {"text.a": 3}).factors == {"text.a": 3, "text.e": 3}
    with pytest.raises(PlanError, match=r"text\.e is text\.a"):
        plan(recipes, {"text.a": 3, "text.e": 2})


def test_powers_of_a_parts_depth_are_its_own():
    recipe = load_recipe("llava", {"text_config": {"model_type": "deepseek_v3"}})  # scale_depth | #layers^0.5
    (rule,) = (rule for rule in recipe.config if rule.key == "text_config.scale_depth")
    _, (power,) = rule.choices[0].value
    assert power.axis in {depth.name for depth in recipe.depths}


def test_conditions_and_definitions_are_local_to_a_part(recipes):
    recipe = load_recipe(recipes / "outer.yaml", CONFIG)
    rule = next(rule for rule in recipe.tensors if rule.text.value == "{text}w.{text.e}")
    assert rule.choices[0].condition.value == "text.double == text_config.scale"
    assert [name for name, _, _ in recipe.definitions] == ["text.double"]
    assert recipe.defaults == {"text_config.wide": False}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ("text: {config: c, recipe: nothing, prefix: text}", "unknown recipe `nothing`"),
        ("text: {config: c, prefix: text}", "the part `text` has no `recipe`"),
        ("text: {config: c, recipe: inner, prefix: text, color: red}", "unknown key `color`"),
        ("text: {config: c, recipe: inner, prefix: text, axes: a}", "expected a mapping of the part's axes"),
        ("text: {config: c, recipe: inner, prefix: text, axes: {z: x}}", "names `z`, but its recipe has no such axis"),
        ("text: inner", "expected a mapping of `config`"),
        ("2x: {config: c, recipe: inner, prefix: text}", "not a valid name"),
        ("[inner]", "expected a mapping of parts"),
    ],
)
def test_mistakes_in_parts_are_reported(parts, message, recipes):
    file = recipes / "wrong.yaml"
    indented = f"\n  {parts}" if not parts.startswith("[") else f" {parts}"
    file.write_text(f"prefix: [{{text: t.}}]\nparts:{indented}\naxes: {{x: n}}\ntensors: {{w: x}}\n")
    with pytest.raises(RecipeError, match=message):
        load_recipe(file, {})


def test_an_error_in_a_part_shows_the_line_as_written(recipes):
    (recipes / "inner.yaml").write_text(INNER.replace("n: a,", "n: a + color,"))
    with pytest.raises(RecipeError) as caught:
        plan(recipes, {"text.a": 2, "text.e": 2})
    assert "the config has no `text_config.color`" in caught.value.message
    assert "n: a + color" in caught.value.excerpt
    assert "^" not in caught.value.excerpt


@pytest.mark.parametrize("wrong", ["x", 3, [], [1], True])
def test_a_section_that_is_not_a_mapping_is_reported(wrong, recipes):
    with pytest.raises((RecipeError, PlanError), match=r"vision_config|`vision\.b`"):
        plan(recipes, {"text.a": 2, "text.e": 2}, {**CONFIG, "vision_config": wrong})


@pytest.mark.parametrize("name", ["{oops}w", "{text.__class__}w", "a.{b,c}", "{text}w.*"])
def test_invalid_names_of_parameters_are_refused(name, tmp_path):
    file = tmp_path / "wrong.yaml"
    file.write_text(f'prefix: [{{text: t.}}]\naxes: {{x: n}}\nparameters: {{a: "{name}"}}\ntensors: {{w: x}}\n')
    with pytest.raises(RecipeError):
        load_recipe(file)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"model_type": "falcon"}, "falcon"),
        ({"model_type": "falcon", "alibi": True}, "falcon_alibi"),
        ({"model_type": "nothing"}, None),
        ({}, None),
    ],
)
def test_conditions_select_the_recipe(config, name):
    assert recipe_for(config) == name

"""Factors, sizes and config keys become the growth of every axis."""

from fractions import Fraction

import pytest

from mupscale_cli.architecture.loading import load_recipe
from mupscale_cli.errors import PlanError
from mupscale_cli.plan import Request, Size
from mupscale_cli.plan.axes import sizes_from_config
from mupscale_cli.plan.conditions import environment
from mupscale_cli.plan.copies import Axis
from mupscale_cli.plan.request import grow_axes

LLAMA = {
    "hidden_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 40,
    "vocab_size": 64,
}
GPT2 = {"n_embd": 24, "n_head": 3, "n_inner": 96}


def grow(name, config, factor=None, axes=None, sizes=None):
    """Return every axis with its growth."""
    recipe = load_recipe(name)
    used = frozenset(recipe.axis_names)

    def sizes_in(changed):
        return sizes_from_config(recipe, environment(recipe, changed), used)

    axes_before = {axis: Axis(axis, size) for axis, size in sizes_in(config).items()}
    return grow_axes(recipe, Request(factor, axes or {}, sizes or {}), axes_before, used, config, sizes_in)


def sizes(*request, **more):
    """Return the wide size of every axis that grows."""
    return {axis.name: axis.wide_size for axis in grow(*request, **more).values() if axis.wide_size != axis.size}


def test_a_factor_grows_the_default_axes_and_a_named_axis_overrides_it():
    assert sizes("llama", LLAMA, 2) == {"embed": 48, "kv": 4, "ffn": 80}
    assert sizes("llama", LLAMA, 2, {"ffn": 8, "g": 3, "embed": 1}) == {"kv": 4, "g": 6, "ffn": 320}
    assert sizes("llama", LLAMA) == {}


def test_a_factor_may_be_a_fraction_where_every_size_comes_out_whole():
    assert sizes("llama", LLAMA, Fraction(3, 2)) == {"embed": 36, "kv": 3, "ffn": 60}
    with pytest.raises(PlanError, match=r"axis `kv` has size 2, and 1\.25 times that is 2\.5, .* not a whole") as error:
        sizes("llama", LLAMA, Fraction(5, 4))
    assert error.value.instead == {"embed": Fraction(3, 2), "kv": Fraction(3, 2), "ffn": Fraction(3, 2)}


def test_an_axis_can_have_a_size_and_becomes_whole_copies_and_fresh_units():
    axes = grow("llama", LLAMA, None, {"embed": Size(40), "ffn": Size(120)})
    assert (axes["embed"].factor, axes["embed"].fresh, axes["embed"].wide_size) == (1, 16, 40)
    assert (axes["ffn"].factor, axes["ffn"].fresh, axes["ffn"].wide_size) == (3, 0, 120)


def test_a_config_key_gives_the_axes_that_depend_on_it_their_sizes():
    assert sizes("llama", LLAMA, None, {"hidden_size": Size(40)}) == {"embed": 40}
    assert sizes("llama", LLAMA, None, {"hidden_size": 2}) == {"embed": 48}
    assert sizes("llama", LLAMA, 2, {"intermediate_size": Size(40)}) == {"embed": 48, "kv": 4}
    heads = {"num_attention_heads": Size(12), "num_key_value_heads": Size(3)}
    assert sizes("llama", LLAMA, None, heads) == {"kv": 3, "g": 4}
    assert sizes("gpt2", GPT2, None, {"n_embd": Size(48)}) == {"embed": 48, "d": 16}
    assert sizes("gpt2", GPT2, None, {"n_embd": Size(48), "n_head": Size(6)}) == {"embed": 48, "h": 6}


def test_sizes_of_another_model_are_overridden_by_what_is_named():
    other = {"embed": 32, "kv": 2, "g": 4, "d": 8, "ffn": 96}
    assert sizes("llama", LLAMA, sizes=other) == {"embed": 32, "g": 4, "ffn": 96}
    assert sizes("llama", LLAMA, None, {"ffn": 1, "hidden_size": Size(48)}, other) == {"embed": 48, "g": 4}


def test_the_last_axis_of_a_link_follows_from_the_others():
    assert sizes("gpt2", GPT2, None, {"embed": Size(48), "h": Size(4), "ffn": 1}) == {"embed": 48, "h": 4, "d": 12}
    assert sizes("gpt2", GPT2, None, {"embed": 4, "h": 2}) == {"embed": 96, "h": 6, "d": 16}


@pytest.mark.parametrize(
    ("name", "config", "factor", "axes", "message"),
    [
        ("llama", LLAMA, 0, {}, "`factor` is 0, expected a number from 1 to 4096"),
        ("llama", LLAMA, 2, {"kv": -1}, r"`axes\[\"kv\"\]` is -1"),
        ("llama", LLAMA, 2, {"kv": 10**30}, r"`axes\[\"kv\"\]` is a number of many digits"),
        ("llama", LLAMA, 2, {"head": 2}, "no axis `head`, nor has config.json a whole number of that name"),
        ("llama", LLAMA, 2, {"vocab_size": 2}, "no axis of `llama` has its size from `vocab_size`"),
        (
            "llama",
            LLAMA,
            None,
            {"embed": Size(8)},
            r"axis `embed` has size 24 and cannot become 8 \(`axes\[\"embed\"\]`\)",
        ),
        ("llama", LLAMA, None, {"hidden_size": Size(8)}, "key `hidden_size` has size 24 and cannot become 8"),
        ("gpt2", GPT2, None, {"embed": 4, "h": 2, "d": 1}, "linked axes do not match"),
        ("gpt2", GPT2, None, {"embed": 2}, "linked axes do not match"),
        ("gpt2", GPT2, None, {"embed": Size(25), "h": 1}, "linked axes do not match"),
    ],
)
def test_impossible_requests_are_refused(name, config, factor, axes, message):
    with pytest.raises(PlanError, match=message):
        grow(name, config, factor, axes)


def test_sizes_that_differ_between_tensors_need_a_whole_factor():
    recipe, axes = load_recipe("mlp"), {"hidden": Axis("hidden", None)}
    for amount in (Size(8), Fraction(3, 2)):
        with pytest.raises(PlanError, match="axis `hidden` has different sizes in different tensors"):
            grow_axes(recipe, Request(axes={"hidden": amount}), axes, frozenset(axes), {}, dict)
    grown = grow_axes(recipe, Request(axes={"hidden": 3}), axes, frozenset(axes), {}, dict)
    assert grown["hidden"].factor == 3

"""Patterns of tensor names."""

import pytest

from mupscale_cli.architecture.patterns import expand_name, parse_pattern


@pytest.mark.parametrize(
    ("pattern", "prefix", "matches", "not_matches"),
    [
        (
            "{prefix}layers.*.w",
            "model.",
            ["model.layers.0.w", "model.layers.x1.w"],
            ["layers.0.w", "model.layers.0.1.w"],
        ),
        ("{k,v}_proj.weight", "", ["k_proj.weight", "v_proj.weight"], ["q_proj.weight", "kv_proj.weight"]),
        ("experts.{e}.w", "", ["experts.12.w"], ["experts.one.w", "experts..w"]),
        ("{first}.weight?", "", ["7.weight"], ["a.weight", "7.weight?"]),
        ("a.weight", "", ["a.weight"], ["aXweight", "a.weight.x"]),
        ("{prefix}**", "model.", ["model.a.b.c"], ["model.", "a.model.b"]),
        ("norms.{(kv g)}.w", "", ["norms.3.w"], ["norms.kv.w"]),
        ("{text.e}.w", "", ["3.w"], ["text.3.w"]),
    ],
)
def test_patterns_match_names(pattern, prefix, matches, not_matches):
    regex = parse_pattern(pattern).regex({"prefix": prefix})
    assert all(regex.fullmatch(name) for name in matches)
    assert not any(regex.fullmatch(name) for name in not_matches)


@pytest.mark.parametrize(
    ("pattern", "endings"),
    [
        ("layers.*.w", (".w",)),
        ("*.{k,v}_proj.{weight,bias}", (".k_proj.weight", ".k_proj.bias", ".v_proj.weight", ".v_proj.bias")),
        ("{a,b}.w?", ("a.w", "b.w")),
        ("{text}norm.{e}", ("",)),
        ("".join(f"{{{letter}0,{letter}1,{letter}2}}" for letter in "abcde"), None),
    ],
)
def test_the_end_of_a_name_tells_whether_a_pattern_may_match(pattern, endings):
    parsed = parse_pattern(pattern, ("text",))
    if endings is None:  # not all that the choices amount to
        assert len(parsed.endings) == 27
        assert parsed.may_match("a0b1c2d0e1")
        assert not parsed.may_match("a0b1c2d0e3")
    else:
        assert set(parsed.endings) == set(endings)
    for ending in parsed.endings:
        assert parsed.may_match_end(ending[1:])
        assert parsed.may_match_end(f"model.{ending}")


def test_a_question_mark_makes_a_tensor_optional():
    assert parse_pattern("a?").optional
    assert not parse_pattern("a").optional


def test_indices_of_axes_in_names_are_replaced():
    pattern = parse_pattern("layers.*.experts.{e}.heads.{/h}.w")
    match = pattern.regex({}).fullmatch("layers.10.experts.9.heads.0.w")
    assert expand_name(pattern, match, (19, 100)) == "layers.10.experts.19.heads.100.w"
    assert [(axis.names, axis.contracted) for axis in pattern.axes] == [(("e",), False), (("h",), True)]


def test_several_axes_can_count_the_same_tensors():
    (axis,) = parse_pattern("norms.{(kv text.g)}.weight").axes
    assert axis.names == ("kv", "text.g")
    text = "norms.{(kv text.g)}.weight"
    assert all(text[start:].startswith(name) for start, name in zip(axis.starts, axis.names, strict=True))


def test_several_words_are_replaced_by_their_prefixes():
    pattern = parse_pattern("{text}norm.{head}", ("text", "head"))
    assert pattern.regex({"text": "a.", "head": "b"}).fullmatch("a.norm.b")
    assert not pattern.axes

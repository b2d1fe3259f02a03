"""Templates of JSON values that name units."""

import pytest

from mupscale_cli.architecture.syntax import LanguageError
from mupscale_cli.architecture.units import Anything, Each, Group, ListOf, Number, parse_template, units_in


def names(template):
    return [unit.name for unit in units_in(template)]


def test_templates_mirror_the_value():
    pairs = parse_template("[[layers, (kv g)]]")
    assert isinstance(pairs, ListOf)
    assert isinstance(pairs.item, Group)
    assert names(pairs) == ["layers", "kv", "g"]
    each = parse_template("[. per text.layers]")
    assert isinstance(each, Each)
    assert isinstance(each.item, Anything)
    assert names(each) == ["text.layers"]


@pytest.mark.parametrize("word", ["like", "after", "places", "first", "runs"])
def test_a_word_says_what_the_number_is(word):
    template = parse_template(f"{word} layers")
    assert isinstance(template, Number)
    assert template.word == word
    (unit,) = units_in(template)
    assert f"{word} layers"[slice(*unit.span)] == "layers"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected an axis"),
        ("[layers", "`\\[` is never closed"),
        ("[layers, ]", "expected an axis"),
        ("like (kv g)", "expected an axis"),
        ("layers h", "expected the end"),
        ("[" * 60, "nested deeper"),
    ],
)
def test_mistakes_are_reported(text, message):
    with pytest.raises(LanguageError, match=message):
        parse_template(text)

"""Parsing YAML into nodes that remember their place."""

import pytest

from mupscale_cli.architecture.document import Entries, Items, Text, parse_document
from mupscale_cli.errors import RecipeError


def test_nodes_remember_their_place():
    document = parse_document('a: 1\nb:\n  - "x y"\n  - {c: ~}\n', "f.yaml")
    b = document.get("b")
    assert isinstance(b, Items)
    text, entries = b.nodes
    assert isinstance(text, Text)
    assert (text.value, text.quoted, text.origin.line, text.origin.column) == ("x y", True, 3, 5)
    assert isinstance(entries, Entries)
    assert entries.get("c").is_null
    assert document.get("missing") is None


def test_an_error_shows_line_and_caret():
    document = parse_document('tensors:\n  name: "(a b"  # wrong\n', "f.yaml")
    text = document.get("tensors").get("name")
    error = text.error("never closed", (0, 1), "add `)`")
    assert error.message == "f.yaml:2: never closed"
    line, caret = error.excerpt.splitlines()
    assert line[caret.index("^")] == "("
    assert caret.count("^") == 1
    assert error.hint == "add `)`"


def test_carets_end_with_the_line():
    text = parse_document("  name: abcd\n", "f.yaml").get("name")
    line, caret = text.error("too long", (2, 100)).excerpt.splitlines()
    assert line[caret.index("^") :] == "cd"
    assert caret.count("^") == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("- a\n", "contains a list, expected"),
        ("a: [1\n", r"not valid YAML: .*expected ',' or '\]'"),
        ("a: 1\na: 2\n", "f.yaml:2: duplicate key `a`, first used on line 1"),
        ("a: &x 1\nb: *x\n", "aliases"),
        ("a: !!python/object:os.system x\n", "not valid YAML|tag"),
        ("a: !mine x\n", "tag `!mine`"),
        ("{a: {b: 1}: 2}", "not valid YAML|plain text"),
        ("? [a]\n: 1\n", "plain text"),
        ("a: " + "[" * 20 + "]" * 20, "nested too deeply"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("#" * (1 << 20) + "##\na: 1\n", "larger than"),
        ("a: \x07\n", "not valid YAML"),
    ],
)
def test_invalid_documents_are_refused(text, message):
    with pytest.raises(RecipeError, match=message):
        parse_document(text, "f.yaml")

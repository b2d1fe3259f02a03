"""Schemas are generated from types, and values are checked against them."""

import copy
import itertools
import json
import math
from typing import Annotated, Any, Literal, TypedDict

import jsonschema
import pytest

from mupscale_cli.cli.output import print_document
from mupscale_cli.record import documents
from mupscale_cli.record.documents import load_schema
from mupscale_cli.record.schema import NotRequired, json_schema, limits, mistake


class Leaf(TypedDict):
    """A leaf of the made-up document."""

    kind: Annotated[Literal["green", "brown"], "Color."]
    size: NotRequired[Annotated[float | None, "Length in mm; null if unknown.", limits(minimum=0)]]


class Branch(TypedDict):
    """A branch, which has branches."""

    name: Annotated[str, "Name.", limits(pattern="^[a-z]+$")]
    leaves: Annotated[list[Leaf], "Leaves of the branch.", limits(minItems=1)]
    branches: Annotated[dict[str, "Branch"], "Branches, by place."]
    alive: bool
    notes: Any


GOOD = {
    "name": "oak",
    "leaves": [{"kind": "green", "size": 1.5}, {"kind": "brown"}, {"kind": "green", "size": None}],
    "branches": {"left": {"name": "twig", "leaves": [{"kind": "brown"}], "branches": {}, "alive": False, "notes": 3}},
    "alive": True,
    "notes": [None],
}


def test_a_new_document_has_a_schema_and_is_printed(monkeypatch, capsys):
    monkeypatch.setitem(documents.DOCUMENTS, "branch", Branch)
    monkeypatch.setitem(documents.VERSIONS, "branch", 1)
    print_document("branch", GOOD)
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"schema": "branch", "schema_version": 1, **GOOD}
    schema = load_schema("branch")
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(printed)
    assert mistake(printed, schema) is None
    assert schema["title"] == "A branch, which has branches"
    assert schema["properties"]["name"] == {
        "type": "string",
        "description": "Name.",
        "pattern": "^[a-z]+$",
    }
    assert schema["$defs"]["Leaf"]["required"] == ["kind"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.pop("alive"), "`alive` is missing"),
        (lambda d: d["branches"]["left"].pop("name"), "`branches.left.name` is missing"),
        (lambda d: d.update(name=3), "`name` is 3, not text"),
        (lambda d: d.update(name="A" * 99), f"`name` is '{'A' * 39}…, which is not allowed here"),
        (lambda d: d.update(leaves=[]), "`leaves` has 0 entries, less than 1"),
        (lambda d: d.update(leaves={}), "`leaves` is an object, not a list"),
        (lambda d: d["leaves"][0].update(kind="red"), "`leaves[0].kind` is 'red'; known: green, brown"),
        (lambda d: d["leaves"][0].update(size=-1), "`leaves[0].size` is -1, less than 0"),
        (lambda d: d["leaves"][0].update(size=math.nan), "`leaves[0].size` is nan, not a finite number"),
        (lambda d: d["leaves"][0].update(size=10**5000), "`leaves[0].size` is a huge number, not a finite number"),
        (lambda d: d.update(alive=1), "`alive` is 1, not true or false"),
        (lambda d: d.update(branches={"a": 1}), "`branches.a` is 1, not an object"),
    ],
)
def test_a_mistake_is_reported_with_its_place(change, says):
    document = copy.deepcopy(GOOD)
    change(document)
    assert mistake(document, json_schema(Branch)) == says


def test_keys_of_later_versions_pass():
    assert mistake({**GOOD, "later": 1}, json_schema(Branch)) is None
    assert not jsonschema.Draft202012Validator(json_schema(Branch)).is_valid({**GOOD, "later": 1})


def places(value, path=()):
    """Yield the path of every value in a document."""
    yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


def test_jsonschema_finds_the_same_mistakes():
    schema = json_schema(Branch)
    validator = jsonschema.Draft202012Validator(schema)
    values = (None, True, 0, -1, 2.5, "x", "green", [], {}, ["x"], [{"kind": "green"}], {"kind": "brown"})
    for (*parents, last), value in itertools.product([path for path in places(GOOD) if path], values):
        document = place = copy.deepcopy(GOOD)
        for key in parents:
            place = place[key]
        place[last] = value
        is_strange = isinstance(value, dict) and last not in ("branches", "notes")  # the key `kind` passes here
        assert (mistake(document, schema) is None) == validator.is_valid(document) or is_strange, document

"""Generate JSON Schemas from types, and check values against them.

A document is a `TypedDict`. Its type hints contain the descriptions and limits of its keys:

    >>> from typing import Annotated, TypedDict
    >>> from mupscale_cli.record.schema import json_schema, limits, mistake
    >>> class Axis(TypedDict):
    ...     \"\"\"An axis and its factor.\"\"\"
    ...
    ...     name: Annotated[str, "Name in the recipe."]
    ...     factor: Annotated[int, "Copies of each unit.", limits(minimum=1)]
    >>> mistake({"name": "embed", "factor": 0}, json_schema(Axis))
    '`factor` is 0, less than 1'
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

if sys.version_info >= (3, 11):
    from typing import NotRequired
else:
    from typing_extensions import NotRequired

__all__ = ["NotRequired", "json_schema", "limits", "mistake"]

Schema = dict[str, Any]
_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
_WORDS = {
    "string": "text",
    "integer": "a whole number",
    "number": "a finite number",
    "boolean": "true or false",
    "null": "null",
    "object": "an object",
    "array": "a list",
}
_LARGEST = 2**63  # no count is larger, but integers of Python have no limit
_MAX_SHOWN = 40  # characters of a value in a message


def limits(**keywords: float | str) -> tuple[tuple[str, float | str], ...]:
    """Return JSON Schema keywords for use in `Annotated`, such as `minimum`, `pattern` or `minItems`."""
    return tuple(keywords.items())


def json_schema(document: type, head: Mapping[str, Schema] | None = None) -> Schema:
    """Generate the JSON Schema (draft 2020-12) of a document from its type.

    Args:
        document: a `TypedDict`; its nested types become `$defs`.
        head: required properties that precede those of the type.
    """
    parts: dict[str, Schema] = {}
    schema = _object(document, head or {}, parts)
    return {**schema, "$defs": dict(sorted(parts.items()))} if parts else schema


def _object(document: type, head: Mapping[str, Schema], parts: dict[str, Schema]) -> Schema:
    hints = get_type_hints(document, include_extras=True)
    optional = {key for key, hint in hints.items() if get_origin(hint) is NotRequired}
    return {
        "title": (document.__doc__ or "").partition("\n")[0].removesuffix("."),
        "type": "object",
        "properties": {**head, **{key: _value(hint, parts) for key, hint in hints.items()}},
        "required": [*head, *(key for key in hints if key not in optional)],
        "additionalProperties": False,
    }


def _value(hint: Any, parts: dict[str, Schema]) -> Schema:
    """Return the schema of a value; add the schema of a `TypedDict` to `parts` and refer to it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is NotRequired:
        return _value(arguments[0], parts)
    if origin is Annotated:
        schema = _value(arguments[0], parts)
        for note in arguments[1:]:
            schema |= {"description": note} if isinstance(note, str) else dict(note)
        return schema
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, UnionType):
        return {"anyOf": [_value(argument, parts) for argument in arguments]}
    if origin is list:
        return {"type": "array", "items": _value(arguments[0], parts)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _value(arguments[1], parts)}
    if is_typeddict(hint):
        if hint.__name__ not in parts:
            parts[hint.__name__] = {}  # a type may contain itself
            parts[hint.__name__] |= _object(hint, {}, parts)
        return {"$ref": f"#/$defs/{hint.__name__}"}
    return {} if hint is Any else {"type": _TYPES[hint]}


def mistake(value: Any, schema: Schema) -> str | None:
    """Return the first mistake of a value, with its place; None if the value matches the schema.

    The schema must come from `json_schema`. The check differs from JSON Schema: unknown keys are allowed because later
    versions add keys; 1.0 is not an integer; NaN, infinities and integers beyond 2^63 are refused.
    """
    place, problem = next(_mistakes(value, schema, schema.get("$defs", {}), ""), ("", None))
    return problem and f"`{place.removeprefix('.')}` {problem}"


def _mistakes(value: Any, schema: Schema, parts: Mapping[str, Schema], place: str) -> Iterator[tuple[str, str]]:
    if "$ref" in schema:
        yield from _mistakes(value, parts[schema["$ref"].removeprefix("#/$defs/")], parts, place)
    if "anyOf" in schema:
        mistakes = [list(_mistakes(value, choice, parts, place)) for choice in schema["anyOf"]]
        if all(mistakes):  # report the mistake in the closest alternative
            yield max((first for first, *_ in mistakes), key=lambda mistake: mistake[0].count("."))
    known = [schema["const"]] if "const" in schema else schema.get("enum")
    if known is not None and not any(type(value) is type(each) and value == each for each in known):
        yield place, f"is {_display(value)}; known: {', '.join(map(str, known))}"
    if "type" in schema and not _is_a(schema["type"], value):
        yield place, f"is {_display(value)}, not {_WORDS[schema['type']]}"
    elif isinstance(value, dict):
        yield from _beyond(len(value), schema.get("minProperties"), None, place, "has {} entries")
        yield from ((f"{place}.{key}", "is missing") for key in schema.get("required", ()) if key not in value)
        others = schema.get("additionalProperties") or {}
        for key, inner in value.items():
            yield from _mistakes(inner, schema.get("properties", {}).get(key, others), parts, f"{place}.{key}")
    elif isinstance(value, list):
        yield from _beyond(len(value), schema.get("minItems"), schema.get("maxItems"), place, "has {} entries")
        for number, inner in enumerate(value):
            yield from _mistakes(inner, schema.get("items", {}), parts, f"{place}[{number}]")
    elif isinstance(value, str):
        if "pattern" in schema and not re.search(schema["pattern"], value):
            yield place, f"is {_display(value)}, which is not allowed here"
    elif isinstance(value, (int, float)):
        yield from _beyond(value, schema.get("minimum"), schema.get("maximum"), place, "is {}")


def _beyond(value: float, least: float | None, most: float | None, place: str, words: str) -> Iterator[tuple[str, str]]:
    problem = words.format(_display(value))
    if least is not None and value < least:
        yield place, f"{problem}, less than {least:g}"
    if most is not None and value > most:
        yield place, f"{problem}, more than {most:g}"


def _is_a(kind: str, value: Any) -> bool:
    if type(value) is int and abs(value) > _LARGEST:
        return False
    if kind == "number":
        return type(value) is int or (type(value) is float and math.isfinite(value))
    types = {"string": str, "integer": int, "boolean": bool, "null": type(None), "object": dict, "array": list}
    return type(value) is types[kind]


def _display(value: Any) -> str:
    """Return a short description of a value: its first characters, or the kind of a container."""
    if isinstance(value, (dict, list)):
        return _WORDS["object" if isinstance(value, dict) else "array"]
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**_MAX_SHOWN else "a huge number"
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"

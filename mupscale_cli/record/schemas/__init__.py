"""The documents that `--json` prints: the name and version of each, and its JSON Schema.

Within a version keys are only added; a key that changes or goes raises the version.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mupscale_cli.errors import MupscaleError

# The name of every document and its version; each has a file NAME.json beside this one.
VERSIONS = {
    "demo": 1,
    "doctor": 1,
    "error": 1,
    "explain": 1,
    "help": 1,
    "hparams": 1,
    "inspect": 1,
    "plan": 1,
    "plot": 1,
    "push": 1,
    "recipe-check": 1,
    "recipe-draft": 1,
    "recipe": 1,
    "recipes": 1,
    "record": 2,  # that of mupscale.json
    "run": 1,
    "sweep": 1,
    "verify": 1,
    "verify-weights": 1,
    "widen": 1,
}


def versioned(schema: str, document: Mapping[str, Any]) -> dict[str, Any]:
    """A document that begins with the name of its schema and its version."""
    return {**document_head(schema), **{key: value for key, value in document.items() if key not in _HEAD}}


_HEAD = ("schema", "schema_version")


def document_head(schema: str) -> dict[str, Any]:
    """What every document begins with."""
    return dict(zip(_HEAD, (schema, VERSIONS[schema]), strict=True))


def load_schema(name: str) -> dict[str, Any]:
    """The JSON Schema of a document, with everything that it refers to inside of it.

    Raises:
        MupscaleError: there is no such document.
    """
    if name not in VERSIONS:
        raise MupscaleError(f"there is no schema `{name}`", hint=f"known: {', '.join(VERSIONS)}")
    schema = _read(name)
    if not (parts_of := set(_references(schema))):
        return schema
    parts: dict[str, Any] = {}
    while missing := parts_of - parts.keys():
        for part in missing:
            content = _read(part)
            parts[part] = {key: value for key, value in content.items() if key not in ("$id", "$schema")}
            parts_of |= set(_references(content))
    return {**_local(schema), "$defs": {part: _local(parts[part]) for part in sorted(parts)}}


def _read(name: str) -> dict[str, Any]:
    text = Path(__file__).with_name(f"{name}.json").read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    return content


def _references(node: Any) -> Iterator[str]:
    """The other files that a schema refers to, as `{"$ref": "NAME.json"}`."""
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str) and node["$ref"].endswith(".json"):
            yield node["$ref"].removesuffix(".json")
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


def _local(node: Any) -> Any:
    """The same with its references to files pointing to its own `$defs`."""
    if isinstance(node, list):
        return [_local(value) for value in node]
    if not isinstance(node, dict):
        return node
    result = {key: _local(value) for key, value in node.items()}
    if isinstance(result.get("$ref"), str) and result["$ref"].endswith(".json"):
        result["$ref"] = f"#/$defs/{result['$ref'].removesuffix('.json')}"
    return result

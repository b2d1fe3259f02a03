"""The documents that `--json` prints, each by its type and version; their types are in modules by subject.

Within a version, keys are only added; changing or removing a key raises the version. Importing this package takes
milliseconds, so code that only creates documents imports the types for type checking only.
"""

from __future__ import annotations

from typing import Any

from mupscale_cli.errors import MupscaleError
from mupscale_cli.record import FORMAT_VERSION
from mupscale_cli.record.documents.demo import Demo
from mupscale_cli.record.documents.doctor import Doctor
from mupscale_cli.record.documents.explanation import Explain
from mupscale_cli.record.documents.hparams import Hparams
from mupscale_cli.record.documents.jobs import Run
from mupscale_cli.record.documents.manual import Error, Help, Version
from mupscale_cli.record.documents.outputs import Plot, Push, Verify, Widen
from mupscale_cli.record.documents.plan import Description, Inspect, Plan
from mupscale_cli.record.documents.recipes import Coverage, Recipe, RecipeCheck, RecipeDraft, Recipes
from mupscale_cli.record.documents.sweep import Coordcheck, Sweep
from mupscale_cli.record.schema import Schema, json_schema
from mupscale_cli.record.types import Record

DOCUMENTS: dict[str, type] = {
    "coordcheck": Coordcheck,
    "coverage": Coverage,
    "demo": Demo,
    "doctor": Doctor,
    "error": Error,
    "description": Description,
    "explain": Explain,
    "help": Help,
    "hparams": Hparams,
    "inspect": Inspect,
    "plan": Plan,
    "plot": Plot,
    "push": Push,
    "recipe-check": RecipeCheck,
    "recipe-draft": RecipeDraft,
    "recipe": Recipe,
    "recipes": Recipes,
    "record": Record,  # mupscale.json
    "run": Run,
    "sweep": Sweep,
    "verify": Verify,
    "version": Version,
    "widen": Widen,
}
VERSIONS = {**dict.fromkeys(DOCUMENTS, 1), "record": FORMAT_VERSION}


def document_head(name: str) -> dict[str, Any]:
    """Return the first keys of every document: its name and its version."""
    return {"schema": name, "schema_version": VERSIONS[name]}


def load_schema(name: str) -> Schema:
    """Return the JSON Schema of a document, generated from its type.

    Raises:
        MupscaleError: no document has this name.
    """
    if name not in DOCUMENTS:
        raise MupscaleError(f"unknown schema `{name}`", hint=f"known: {', '.join(DOCUMENTS)}")
    is_record = name == "record"  # mupscale.json has its own key for the version
    head = {} if is_record else {key: {"const": value} for key, value in document_head(name).items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:mupscale:{name}" + ("" if is_record else f":{VERSIONS[name]}"),
        **json_schema(DOCUMENTS[name], head),
    }

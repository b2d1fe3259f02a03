"""Read why some model types cannot be widened exactly, from refusals.yaml."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mupscale_cli.architecture.document import Entries, Items, Text, parse_document
from mupscale_cli.files import read_text

_FILE = Path(__file__).with_name("refusals.yaml")
_KEYS = ("types", "why", "instead")


@dataclass(frozen=True)
class Refusal:
    """Why some model types cannot be widened exactly.

    Attributes:
        part: the part of the network that stands in the way.
        types: the model types.
        why: what the part computes, and why copied units change it.
        instead: what is possible.
    """

    part: str
    types: tuple[str, ...]
    why: str
    instead: str


@cache
def refusals() -> tuple[Refusal, ...]:
    """Return every refusal, in the order of the file.

    Raises:
        RecipeError: the file is invalid.
    """
    document = parse_document(read_text(_FILE), _FILE.name)
    return tuple(_refusal(part.value, entry) for part, entry in document if isinstance(entry, Entries))


def _refusal(part: str, entry: Entries) -> Refusal:
    types, why, instead = (entry.get(key) for key in _KEYS)
    if len(entry.pairs) != len(_KEYS) or not (
        isinstance(types, Items) and isinstance(why, Text) and isinstance(instead, Text)
    ):
        raise entry.error(f"an entry has {', '.join(_KEYS)}")
    names = tuple(node.value for node in types.nodes if isinstance(node, Text))
    return Refusal(part, names, why.value, instead.value)


def refusal_of(model_type: str) -> Refusal | None:
    """Return why a model type cannot be widened exactly; None if nothing is known against it."""
    return next((refusal for refusal in refusals() if model_type in refusal.types), None)

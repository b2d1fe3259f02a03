"""Write a whole model card: its metadata, and mupscale's section within the text of others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mupscale_cli.checkpoints.hub.cards import Card, parse_card
from mupscale_cli.errors import HubError
from mupscale_cli.tasks.card import has_section, with_section

TAGS = ("mupscale", "model-growth")
_INHERITED = ("license", "license_name", "license_link", "pipeline_tag")
_RELATION = "finetune"  # the closest of the relations that the Hub knows


@dataclass(frozen=True)
class CardFacts:
    """Facts for a card's metadata.

    Attributes:
        base_model: the source's id on the Hub; None if the source is not on the Hub.
        library: the library that loads the model; None if unknown.
        inherited: license and task, if the source's card names them.
    """

    base_model: str | None = None
    library: str | None = None
    inherited: Mapping[str, Any] = field(default_factory=dict)


def inherited_facts(source_card: str | None) -> dict[str, Any]:
    """Return the license and task that a source's card names; nothing if it names none or is invalid."""
    if source_card is None:
        return {}
    try:
        data = parse_card(source_card).metadata
    except HubError:
        return {}
    return {key: data[key] for key in _INHERITED if data.get(key)}


def make_card(existing: str | None, section: str, facts: CardFacts, name: str) -> str:
    """Return a card with mupscale's section; everything else in an existing card stays.

    Args:
        existing: the existing card's text; None if there is none.
        section: the section, including its markers.
        facts: facts for the metadata; they do not replace what an existing card says.
        name: the model's name, for the title of a new card.

    Raises:
        HubError: the metadata of the existing card are invalid.
    """
    own: dict[str, Any] = {**facts.inherited, "tags": list(TAGS)}
    if facts.library:
        own["library_name"] = facts.library
    if facts.base_model:
        own |= {"base_model": facts.base_model, "base_model_relation": _RELATION}
    if existing is None or not existing.strip():
        return str(Card(own, f"\n{with_section(f'# {name}', section)}"))
    card = parse_card(existing)
    stated = card.metadata
    if has_section(existing) and facts.base_model:  # mupscale wrote these for an earlier widening
        stated = {key: value for key, value in stated.items() if key not in ("base_model", "base_model_relation")}
    tags = stated.get("tags") or []
    merged = {**own, **stated, "tags": [*tags, *(tag for tag in TAGS if tag not in tags)]}
    if stated.get("license"):  # do not mix an existing license with parts of the source's
        merged = {key: value for key, value in merged.items() if key in stated or not key.startswith("license")}
    if stated.get("base_model"):
        merged = {key: value for key, value in merged.items() if key in stated or key != "base_model_relation"}
    order = [*stated, *(key for key in merged if key not in stated)]
    return str(Card({key: merged[key] for key in order}, with_section(card.text, section)))

"""A model card as a whole: its metadata, and the section of mupscale within what others wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mupscale_cli.checkpoints.hub.cards import Card, parse_card
from mupscale_cli.errors import HubError
from mupscale_cli.tasks.card import has_section, with_section

TAGS = ("mupscale", "model-growth")
_INHERITED = ("license", "license_name", "license_link", "pipeline_tag")
_RELATION = "finetune"  # of the relations that the Hub knows, the one for weights that follow from others'


@dataclass(frozen=True)
class CardFacts:
    """What a card's metadata can say of a widened model.

    Attributes:
        base_model: id of the source on the Hub, None where it is not from there.
        library: that loads the model, None where none is known.
        inherited: licence and task of the source's card, as far as it names them.
    """

    base_model: str | None = None
    library: str | None = None
    inherited: Mapping[str, Any] = field(default_factory=dict)


def inherited_facts(source_card: str | None) -> dict[str, Any]:
    """Licence and task that a source's card names; nothing where it names none, or is not valid."""
    if source_card is None:
        return {}
    try:
        data = parse_card(source_card).metadata
    except HubError:
        return {}
    return {key: data[key] for key in _INHERITED if data.get(key)}


def make_card(existing: str | None, section: str, facts: CardFacts, name: str) -> str:
    """A card with the section of mupscale; of an existing one everything else is kept.

    Args:
        existing: the card's text, None where there is none.
        section: with its markers.
        facts: for the metadata; what an existing card says already is not changed.
        name: of the model, for the title of a new card.

    Raises:
        HubError: the metadata of the existing card are not valid.
    """
    own: dict[str, Any] = {**facts.inherited, "tags": list(TAGS)}
    if facts.library:
        own["library_name"] = facts.library
    if facts.base_model:
        own |= {"base_model": facts.base_model, "base_model_relation": _RELATION}
    if existing is None or not existing.strip():
        return str(Card(own, f"\n{with_section(f'# {name}', section)}"))
    card = parse_card(existing)
    told = card.metadata
    if has_section(existing) and facts.base_model:  # ours, of an earlier widening
        told = {key: value for key, value in told.items() if key not in ("base_model", "base_model_relation")}
    tags = told.get("tags") or []
    merged = {**own, **told, "tags": [*tags, *(tag for tag in TAGS if tag not in tags)]}
    if told.get("license"):  # a licence of one's own does not go with parts of another
        merged = {key: value for key, value in merged.items() if key in told or not key.startswith("license")}
    if told.get("base_model"):
        merged = {key: value for key, value in merged.items() if key in told or key != "base_model_relation"}
    order = [*told, *(key for key in merged if key not in told)]
    return str(Card({key: merged[key] for key in order}, with_section(card.text, section)))

"""A model card as metadata and text: the README.md of a repository."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mupscale_cli.errors import HubError


@dataclass(frozen=True)
class Card:
    """A model card.

    Attributes:
        metadata: its YAML header, by key and in order.
        text: what follows the header.
    """

    metadata: Mapping[str, Any]
    text: str

    def __str__(self) -> str:
        from huggingface_hub import ModelCardData

        return f"---\n{ModelCardData(**self.metadata).to_yaml()}\n---\n{self.text}"


def parse_card(content: str) -> Card:
    """Read a card, with or without a header.

    Raises:
        HubError: the header is not valid.
    """
    from huggingface_hub import ModelCard
    from yaml import YAMLError

    try:
        card: Any = ModelCard(content if content.lstrip().startswith("---") else f"---\n{{}}\n---\n{content}")
    except (ValueError, TypeError, YAMLError) as error:
        line = next(iter(str(error).splitlines()), "")
        raise HubError(
            f"the metadata of the existing model card are not valid: {line}", hint="correct README.md, then push again"
        ) from error
    return Card(card.data.to_dict(), card.text)

"""Model cards: the metadata and text of a repository's README.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mupscale_cli.errors import HubError


@dataclass(frozen=True)
class Card:
    """A model card.

    Attributes:
        metadata: its YAML header, keys in order.
        text: text below the header.
    """

    metadata: Mapping[str, Any]
    text: str

    def __str__(self) -> str:
        from huggingface_hub import ModelCardData

        return f"---\n{ModelCardData(**self.metadata).to_yaml()}\n---\n{self.text}"


def parse_card(content: str) -> Card:
    """Parse a card, with or without a header.

    Raises:
        HubError: the header is not valid YAML or not valid metadata.
    """
    from huggingface_hub import ModelCard
    from yaml import YAMLError

    try:
        card: Any = ModelCard(content if content.lstrip().startswith("---") else f"---\n{{}}\n---\n{content}")
    except (ValueError, TypeError, YAMLError) as error:
        line = next(iter(str(error).splitlines()), "")
        raise HubError(
            f"the existing model card has invalid metadata: {line}", hint="fix README.md, then push again"
        ) from error
    return Card(card.data.to_dict(), card.text)

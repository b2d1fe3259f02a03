"""How the Hub's client is set up here; of the token only where it comes from."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


@dataclass(frozen=True, slots=True)
class HubSettings:
    """What the environment says to the Hub's client.

    Attributes:
        home: HF_HOME, or what stands for it.
        cache: where downloads are kept.
        endpoint: without a user's name and password.
        offline: whether nothing is downloaded.
        token: where the token comes from, None where there is none; never the token.
    """

    home: Path
    cache: Path
    endpoint: str
    offline: bool
    token: str | None

    def as_record(self) -> dict[str, Any]:
        """The settings as `--json` shows them."""
        return {
            "hf_home": str(self.home),
            "cache": str(self.cache),
            "endpoint": self.endpoint,
            "offline": self.offline,
            "token": self.token,
        }


def hub_settings() -> HubSettings:
    """The settings that the client would use now."""
    from huggingface_hub import constants, get_token

    token = None
    if get_token() is not None:
        token = next(
            (f"set by {name}" for name in _TOKEN_VARIABLES if os.environ.get(name)), "saved by `hf auth login`"
        )
    return HubSettings(
        Path(constants.HF_HOME),
        Path(constants.HF_HUB_CACHE),
        _public(constants.ENDPOINT),
        constants.HF_HUB_OFFLINE,
        token,
    )


def _public(url: str) -> str:
    """An address without what may be secret in it."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    return f"{parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}{parts.path}"

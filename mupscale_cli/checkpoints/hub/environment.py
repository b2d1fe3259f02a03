"""Settings of the Hub's client. They name the token's origin, never the token."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


@dataclass(frozen=True, slots=True)
class HubSettings:
    """Settings of the Hub's client.

    Attributes:
        home: HF_HOME or its default.
        cache: folder of downloads.
        endpoint: address of the Hub, without user name and password.
        offline: whether offline mode is on.
        token: origin of the token, never the token itself; None if there is no token.
    """

    home: Path
    cache: Path
    endpoint: str
    offline: bool
    token: str | None

    def as_record(self) -> dict[str, Any]:
        """Return the settings as `--json` prints them."""
        return {
            "hf_home": str(self.home),
            "cache": str(self.cache),
            "endpoint": self.endpoint,
            "offline": self.offline,
            "token": self.token,
        }


def hub_settings() -> HubSettings:
    """Return the settings that the client would use now."""
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
    """Return an address without user name, password and query."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    return f"{parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}{parts.path}"

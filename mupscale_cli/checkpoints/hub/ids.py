"""How a model of the Hub is named, and its files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_HUB_ID = re.compile(r"(?:hf://)?(?P<repo>[\w][\w.-]*/[\w][\w.-]*)(?:@(?P<revision>[\w./-]+))?")
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class HubId:
    """A model of the Hub: `org/name`, `org/name@revision`, `hf://org/name`."""

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo

    @property
    def name(self) -> str:
        return self.repo.rpartition("/")[2]


def parse_hub_id(text: str) -> HubId | None:
    """A Hub id, if the text has the form of one."""
    match = _HUB_ID.fullmatch(text)
    return HubId(match["repo"], match["revision"]) if match else None


def stated_sha256(file: Path) -> str | None:
    """The SHA-256 that the Hub states of a large file, as its cache names it; None where the cache has no links."""
    blob = file.resolve()
    return blob.name if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name) else None

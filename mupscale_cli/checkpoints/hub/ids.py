"""Names of models on the Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_HUB_ID = re.compile(
    r"(?:hf://|https://(?:huggingface|hf)\.co/)?(?P<repo>[\w][\w.-]*/[\w][\w.-]*)"
    r"(?:(?:@|/tree/)(?P<revision>[\w./-]*[\w.-]))?"
)
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class HubId:
    """A model on the Hub: `org/name`, `org/name@revision`, `hf://org/name`, or the address of its page."""

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo

    @property
    def name(self) -> str:
        return self.repo.rpartition("/")[2]


def parse_hub_id(text: str) -> HubId | None:
    """Parse a Hub id; None if the text is not one."""
    match = _HUB_ID.fullmatch(text.removesuffix("/") if text.startswith("https://") else text)
    return HubId(match["repo"], match["revision"]) if match else None


def stated_sha256(file: Path) -> str | None:
    """Return the SHA-256 of a cached large file as the Hub states it: the name of the blob that the file links to.

    Returns:
        The digest in hexadecimal; None if the file is not a link into the cache's `blobs`.
    """
    blob = file.resolve()
    return blob.name if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name) else None

"""How a model of the Hub is named."""

from __future__ import annotations

import re
from dataclasses import dataclass

_HUB_ID = re.compile(r"(?:hf://)?(?P<repo>[\w][\w.-]*/[\w][\w.-]*)(?:@(?P<revision>[\w./-]+))?")


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

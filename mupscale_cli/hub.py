"""Checkpoints on the Hugging Face Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from mupscale_cli.errors import CheckpointError

_HUB_ID = re.compile(r"(?:hf://)?(?P<repo>[\w][\w.-]*/[\w][\w.-]*)(?:@(?P<revision>[\w./-]+))?")
# Weights as safetensors and the text files of a model; other formats of the same weights stay there.
_PATTERNS = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.py", "*.tiktoken", "LICENSE*", "NOTICE*"]


@dataclass(frozen=True, slots=True)
class HubId:
    """A model of the Hub: `org/name`, `org/name@revision`, `hf://org/name`."""

    repo: str
    revision: str | None

    @property
    def name(self) -> str:
        return self.repo.rpartition("/")[2]


def parse_hub_id(text: str) -> HubId | None:
    """A Hub id, if the text has the form of one."""
    match = _HUB_ID.fullmatch(text)
    return HubId(match["repo"], match["revision"]) if match else None


def download(model: HubId) -> tuple[Path, str]:
    """Download a model, or find it in the cache.

    Returns:
        Its folder in the cache, and the commit that it is.

    Raises:
        CheckpointError: there is none of that name, it is gated, or the Hub cannot be reached.
    """
    from huggingface_hub import snapshot_download  # a sixth of a second, which only downloads need
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    shown = f"{model.repo}@{model.revision}" if model.revision else model.repo
    try:
        folder = Path(snapshot_download(model.repo, revision=model.revision, allow_patterns=_PATTERNS))
    except GatedRepoError:
        raise CheckpointError(
            f"`{shown}` is gated", hint="ask for access at its page on the Hub, then `hf auth login` or set HF_TOKEN"
        ) from None
    except RevisionNotFoundError:
        raise CheckpointError(f"`{model.repo}` has no revision `{model.revision}`") from None
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"there is neither a file nor a folder `{shown}`, nor such a model on the Hub",
            hint="check the name; for a private model, `hf auth login` or set HF_TOKEN",
        ) from None
    except LocalEntryNotFoundError:
        raise CheckpointError(
            f"there is neither a file nor a folder `{shown}`, and the Hub cannot be reached",
            hint="check the path, or the connection (HF_ENDPOINT, HF_HUB_OFFLINE)",
        ) from None
    except (HfHubHTTPError, OSError) as error:
        raise CheckpointError(f"cannot download `{shown}`: {error}") from None
    return folder, folder.name

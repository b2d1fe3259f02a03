"""Documents of `--json`: what commands write, verify and publish."""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

from mupscale_cli.record.types import Count, Record, Verification


class Plot(TypedDict):
    """Output of `mupscale plot`."""

    output: Annotated[str, "Path of the picture."]


class PushedFile(TypedDict):
    """A file of a push."""

    path: Annotated[str, "Path in the repository."]
    bytes: Annotated[Count | None, "Size in bytes; null for a deleted file."]
    status: Annotated[
        Literal["new", "changed", "unchanged", "deleted", "unknown"],
        "What the push does to the file; unknown in a dry run if the Hub does not answer.",
    ]


class Push(TypedDict):
    """Output of `mupscale push`, with or without --dry-run."""

    repo: Annotated[str, "Repository on the Hub."]
    revision: Annotated[str, "Branch of the repository."]
    url: Annotated[str | None, "Address of the repository or pull request; null if nothing was sent."]
    commit: Annotated[str | None, "The new commit; null if there is none."]
    pull_request: Annotated[int | None, "Number of the pull request; null if there is none."]
    files: Annotated[list[PushedFile], "All files of the push."]
    card: Annotated[str, "Text of the model card."]
    warnings: Annotated[list[str], "Warnings."]


class Verify(Verification):
    """Output of `mupscale verify`."""

    wide: Annotated[str, "The verified checkpoint."]


class Pushed(TypedDict):
    """The repository that a widened checkpoint was published in."""

    repo: Annotated[str, "Repository on the Hub."]
    url: Annotated[str, "Address of the repository or pull request."]
    commit: Annotated[str, "The new commit."]


class Widen(Record):
    """Output of `mupscale widen`: its record and the path of the output."""

    output: Annotated[str | None, "Path of the output; null if the models differ."]
    pushed: Annotated[Pushed | None, "Where it was published; null if it was not."]

"""Documents of `--json`: the manual, the version and errors."""

from __future__ import annotations

from typing import Annotated, TypedDict


class Error(TypedDict):
    """An error of a command."""

    exit_code: Annotated[int, "Exit code of the command."]
    error: Annotated[str, "Class of the error."]
    message: Annotated[str, "What is wrong, and where."]
    excerpt: Annotated[str | None, "Lines of the input that show the error."]
    hint: Annotated[str | None, "How to fix it."]


class Topic(TypedDict):
    """A page of the manual."""

    topic: Annotated[str, "Name of the page."]
    title: Annotated[str, "Title of the page."]


class Help(TypedDict):
    """The manual: `mupscale help`."""

    topic: Annotated[str | None, "Name of the page; null for the list of pages."]
    title: Annotated[str | None, "Title of the page; null for the list of pages."]
    text: Annotated[str | None, "Text of the page as Markdown; null for the list of pages."]
    topics: Annotated[list[Topic] | None, "All pages; null for a single page."]


class Version(TypedDict):
    """The version: `mupscale version`."""

    version: Annotated[str, "Version of mupscale."]

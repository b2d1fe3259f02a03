"""`mupscale help`, `mupscale schema` and `mupscale version`."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from mupscale_cli import __version__
from mupscale_cli.cli import options, output
from mupscale_cli.cli.overview import SUMMARIES
from mupscale_cli.cli.pages import KINDS, page_text, page_titles

_MAX_WIDTH = 100  # columns; longer lines of prose are hard to read


def show_page(
    topic: Annotated[
        str | None, typer.Argument(metavar="TOPIC", help="Page of the manual, or a command. Default: list all pages.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Show a page of the manual, or list all pages. Prints Markdown if the output is not a terminal."""
    if topic is None:
        _list_pages(as_json=as_json)
        return
    if topic in SUMMARIES and topic not in page_titles() and not as_json:
        from mupscale_cli.cli.commands import application

        application(topic)([topic, "--help"], prog_name="mupscale", standalone_mode=False)
        return
    text = page_text(topic)
    console = output.stdout()
    if as_json:
        output.print_document("help", {"topic": topic, "title": page_titles()[topic], "text": text, "topics": None})
    elif console.is_terminal:
        from rich.markdown import Markdown

        console.print(Markdown(text, code_theme="ansi_dark"), width=min(console.width, _MAX_WIDTH))
    else:
        sys.stdout.write(text)


def _list_pages(*, as_json: bool) -> None:
    titles = page_titles()
    if as_json:
        topics = [{"topic": topic, "title": title} for topic, title in titles.items()]
        output.print_document("help", {"topic": None, "title": None, "text": None, "topics": topics})
        return
    result = output.table("", "page", "title")
    for kind, pages in KINDS.items():
        for page in pages:
            result.add_row(kind if page == pages[0] else "", page, titles[page])
    output.stdout().print(result)
    output.note("\n`mupscale help PAGE` shows a page; `mupscale COMMAND --help` lists a command's options")


def show_version(as_json: options.Json = False) -> None:
    """Print the version."""
    if as_json:
        output.print_document("version", {"version": __version__})
    else:
        output.stdout().print(__version__)


def show_schema(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Name of a document. Default: list all documents.")
    ] = None,
    as_json: options.Json = False,  # noqa: ARG001 (the output is always JSON)
) -> None:
    """Print the JSON Schema of a document that `--json` prints, or list all documents."""
    from mupscale_cli.record.documents import VERSIONS, load_schema

    content = VERSIONS if name is None else load_schema(name)
    sys.stdout.write(json.dumps(content, indent=2) + "\n")

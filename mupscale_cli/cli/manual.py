"""`mupscale help`, `mupscale schema` and `mupscale version`."""

from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stdout
from typing import Annotated

import typer

from mupscale_cli import __version__
from mupscale_cli.cli import consoles, options, output, paging
from mupscale_cli.cli.overview import SUMMARIES
from mupscale_cli.cli.pages import KINDS, page_text, page_titles

_MAX_WIDTH = 100  # columns; longer lines of prose are hard to read


def show_page(
    topic: Annotated[
        str | None, typer.Argument(metavar="TOPIC", help="Page of the manual, or a command. Default: list all pages.")
    ] = None,
    no_pager: Annotated[
        bool, typer.Option("--no-pager", help="Print on the terminal, without a pager (PAGER; `less` by default).")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Show a page of the manual, or list all pages. Prints Markdown if the output is not a terminal."""
    if topic is None:
        _list_pages(as_json=as_json)
    elif as_json:
        output.print_document(
            "help", {"topic": topic, "title": page_titles().get(topic), "text": page_text(topic), "topics": None}
        )
    elif topic in SUMMARIES and topic not in page_titles():
        paging.show(_help_of(topic), paged=not no_pager)
    else:
        paging.show(_rendered(page_text(topic)), paged=not no_pager)


def _help_of(command: str) -> str:
    """Return the help of a command, colored if it is for a terminal."""
    from mupscale_cli.cli.commands import application

    forced = consoles.forced_color()
    color = sys.stdout.isatty() if forced is None else forced
    with redirect_stdout(io.StringIO()) as text:
        application(command)([command, "--help"], prog_name="mupscale", standalone_mode=False, color=color)
    return text.getvalue()


def _rendered(text: str) -> str:
    """Return Markdown as a terminal shows it, if stdout is one."""
    console = output.stdout()
    if not console.is_terminal:
        return text
    from mupscale_cli.cli.markdown import Page

    with console.capture() as shown:
        console.print(Page(text, code_theme="ansi_dark"), width=min(console.width, _MAX_WIDTH), crop=False)
    return shown.get()


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

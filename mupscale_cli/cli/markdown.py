"""Markdown on a terminal: code that can be copied, pictures as text, tables without a header."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich import box, markdown
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from mupscale_cli.cli import pages

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

_FOLDER = Path(pages.__file__).parent  # pages name their pictures relative to it


class _Code(markdown.CodeBlock):
    """Code whose lines are never broken: the terminal wraps them itself, so that they can be copied."""

    def __rich_console__(self, _console: Console, _options: ConsoleOptions) -> RenderResult:
        """Yield the highlighted code."""
        text = Syntax("", self.lexer_name, theme=self.theme).highlight(str(self.text).rstrip())
        text.rstrip()
        text.no_wrap, text.overflow = True, "ignore"
        yield text


class _Picture(markdown.ImageItem):
    """What a picture shows, and the file that it is in."""

    def __rich_console__(self, _console: Console, _options: ConsoleOptions) -> RenderResult:
        """Yield the text."""
        path = _FOLDER / self.destination
        shown = path if path.is_file() else self.destination
        yield Text.assemble("[picture: ", Text(str(self.text)), f": {shown}]", end="")


class _Table(markdown.TableElement):
    """A table; without a header if the header's cells are empty."""

    def __rich_console__(self, _console: Console, _options: ConsoleOptions) -> RenderResult:
        """Yield the table."""
        cells = [] if self.header is None or self.header.row is None else self.header.row.cells
        headings = [cell.content.copy() for cell in cells]
        has_header = any(heading.plain for heading in headings)
        table = Table(
            box=box.SIMPLE_HEAD if has_header else None,
            pad_edge=False,
            show_header=has_header,
            show_edge=False,
            style="markdown.table.border",
            padding=(0, 2, 0, 0),
        )
        for heading in headings:
            heading.stylize("markdown.table.header")
            table.add_column(heading, overflow="fold")
        for row in self.body.rows if self.body is not None else ():
            table.add_row(*(cell.content for cell in row.cells))
        yield table


class Page(markdown.Markdown):
    """A page of the manual. Print it with `crop=False`."""

    elements = {  # noqa: RUF012 (as in rich)
        **markdown.Markdown.elements,
        "fence": _Code,
        "code_block": _Code,
        "image": _Picture,
        "table_open": _Table,
    }

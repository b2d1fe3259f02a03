"""Tables that break lines between words and behind the dots of a name, and end where their text ends."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

_GAP = 2  # blanks between columns
_INDENT = "  "  # of what goes on in the next line
# Blanks belong to what is before them; a dot between digits is a decimal point, any other one ends a part of a name.
_PIECE = re.compile(r"\S*?(?:(?<!\d)\.(?=[^\s.])|\.(?=[^\s.\d])|(?<=\w)/(?=\w)|\s+|$)")


@dataclass(frozen=True)
class Hanging:
    """A cell of a table, and what further lines of its row begin with."""

    text: Text
    indent: str

    def __rich__(self) -> Text:
        return self.text


class OpenTable(Table):
    """Headings and columns without a box.

    Where the terminal is too narrow, cells go on in the next line: between words, or behind a dot of a tensor's name.
    Only where that does not help are words cut. No line ends in blanks, so that output can be pasted and compared.
    """

    def __init__(self, *columns: str, right: Sequence[str] = ()) -> None:
        super().__init__(box=None, pad_edge=False, header_style="bold", show_edge=False)
        for column in columns:
            self.add_column(column, justify="right" if column in right else "left")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns = [[_cell(console, cell) for cell in (column.header, *column.cells)] for column in self.columns]
        room = options.max_width - _GAP * (len(columns) - 1)
        widths = _fit([_natural(cells) for cells in columns], [_least(cells) for cells in columns], room)
        fitted = Table(
            box=None, pad_edge=False, header_style=self.header_style, show_edge=False, show_header=self.show_header
        )
        wrapped = []
        for column, cells, width in zip(self.columns, columns, widths, strict=True):
            heading, *rest = (_wrapped(cell, width) for cell in cells)
            fitted.add_column(Text("\n").join(heading), justify=column.justify, width=width, no_wrap=True)
            wrapped.append(rest)
        indents = [[cell.indent for cell in cells[1:]] for cells in columns]
        for row, lines, beside in zip(self.rows, zip(*wrapped, strict=True), zip(*indents, strict=True), strict=True):
            height = max(map(len, lines))
            filled = (own + [Text(indent)] * (height - len(own)) for own, indent in zip(lines, beside, strict=True))
            fitted.add_row(*map(Text("\n").join, filled), style=row.style, end_section=row.end_section)
        for line in Segment.split_lines(console.render(fitted, options)):
            yield from _stripped(line)
            yield Segment.line()


def _cell(console: Console, cell: RenderableType | Hanging) -> Hanging:
    if isinstance(cell, Hanging):
        return cell
    return Hanging(cell if isinstance(cell, Text) else console.render_str(str(cell)), _INDENT)


def _natural(cells: Iterable[Hanging]) -> int:
    """Width that breaks no line."""
    return max(line.cell_len for cell in cells for line in cell.text.split(allow_blank=True))


def _least(cells: Iterable[Hanging]) -> int:
    """Width below which words would be cut."""
    found = 1
    for cell in cells:
        for line in cell.text.split(allow_blank=True):
            for number, (start, end) in enumerate(_pieces(line.plain)):
                indent = len(cell.indent) if number else 0
                found = max(found, indent + line[start:end].cell_len - _num_trailing(line.plain[start:end]))
    return found


def _num_trailing(text: str) -> int:
    return len(text) - len(text.rstrip())


def _pieces(text: str) -> Iterator[tuple[int, int]]:
    """Where the pieces lie between which a line may break; blanks at its beginning stay with the first."""
    start = len(text) - len(text.lstrip())
    first = 0
    while start < len(text):
        match = _PIECE.match(text, start)
        assert match is not None
        yield first, match.end()
        first = start = match.end()


def _fit(natural: Sequence[int], least: Sequence[int], room: int) -> list[int]:
    """Widths of columns that fit: the widest give first, as far as no word is cut; then as far as needed."""
    widths = list(natural)
    for floor in (least, [1] * len(widths)):
        while sum(widths) > room:
            giving = [index for index, width in enumerate(widths) if width > floor[index]]
            if not giving:
                break
            widths[max(giving, key=lambda index: widths[index])] -= 1
    return widths


def _wrapped(cell: Hanging, width: int) -> list[Text]:
    """A cell in lines of at most `width`."""
    return [part for line in cell.text.split(allow_blank=True) for part in _lines(line, width, cell.indent)]


def _lines(line: Text, width: int, indent: str) -> Iterator[Text]:
    indent = indent if len(indent) < width else ""
    current = Text()
    for start, end in _pieces(line.plain):
        piece = line[start:end]
        tight = piece.copy()
        tight.rstrip()
        if current and current.cell_len + tight.cell_len > width:
            current.rstrip()
            yield current
            current = Text(indent)
        while current.cell_len + tight.cell_len > width:  # a word that has to be cut
            room = max(1, width - current.cell_len)
            yield current + tight[:room]
            tight = piece = tight[room:]
            current = Text(indent)
        current += piece
    current.rstrip()
    yield current


def _stripped(line: Iterable[Segment]) -> list[Segment]:
    """A line without the blanks at its end."""
    segments = list(line)
    while segments and not segments[-1].text.strip():
        segments.pop()
    if segments:
        last = segments[-1]
        segments[-1] = Segment(last.text.rstrip(), last.style, last.control)
    return segments

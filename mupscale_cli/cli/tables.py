"""Tables without boxes, whose cells wrap between words and after the dots of names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

_GAP = 2  # blanks between columns
_INDENT = "  "  # of continuation lines
_UNIT = r"(?<=\d) (?:[kMGTP]?B|[kMGT])\b"  # with the blank before it; a number and its unit stay together
# A piece ends after blanks, after a dot of a name (not a decimal point), or after a slash inside a word.
_PIECE = re.compile(rf"(?:\S|{_UNIT})*?(?:(?<!\d)\.(?=[^\s.])|\.(?=[^\s.\d])|(?<=\w)/(?=\w)|(?!{_UNIT})\s+|$)")


@dataclass(frozen=True)
class Hanging:
    """A cell of a table with the text that starts its continuation lines."""

    text: Text
    indent: str

    def __rich__(self) -> Text:
        return self.text


class OpenTable(Table):
    """A table with headings and columns, but no box.

    If the terminal is too narrow, cells wrap between words and after the dots of tensor names. Words are cut only if
    that is not enough. No line ends in blanks, which keeps pasted output clean and comparable.
    """

    def __init__(self, *columns: str, right: Sequence[str] = ()) -> None:
        super().__init__(box=None, pad_edge=False, header_style="bold", show_edge=False)
        for column in columns:
            self.add_column(column, justify="right" if column in right else "left")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns = [[_cell(console, cell) for cell in (column.header, *column.cells)] for column in self.columns]
        available = options.max_width - _GAP * (len(columns) - 1)
        widths = _fit(
            [_natural_width(cells) for cells in columns], [_least_width(cells) for cells in columns], available
        )
        fitted = Table(
            box=None, pad_edge=False, header_style=self.header_style, show_edge=False, show_header=self.show_header
        )
        wrapped = []
        for column, cells, width in zip(self.columns, columns, widths, strict=True):
            heading, *rest = (_wrap(cell, width) for cell in cells)
            fitted.add_column(Text("\n").join(heading), justify=column.justify, width=width, no_wrap=True)
            wrapped.append(rest)
        indents = [[cell.indent for cell in cells[1:]] for cells in columns]
        for row, lines, starts in zip(self.rows, zip(*wrapped, strict=True), zip(*indents, strict=True), strict=True):
            height = max(map(len, lines))
            filled = (cell + [Text(start)] * (height - len(cell)) for cell, start in zip(lines, starts, strict=True))
            fitted.add_row(*map(Text("\n").join, filled), style=row.style, end_section=row.end_section)
        for line in Segment.split_lines(console.render(fitted, options)):
            yield from _without_trailing_blanks(line)
            yield Segment.line()


def _cell(console: Console, cell: RenderableType | Hanging) -> Hanging:
    if isinstance(cell, Hanging):
        return cell
    return Hanging(cell if isinstance(cell, Text) else console.render_str(str(cell)), _INDENT)


def _natural_width(cells: Iterable[Hanging]) -> int:
    """Return the smallest width that wraps no line."""
    return max(line.cell_len for cell in cells for line in cell.text.split(allow_blank=True))


def _least_width(cells: Iterable[Hanging]) -> int:
    """Return the smallest width that cuts no word."""
    return max(
        len(cell.indent if number else "") + _rstripped(piece).cell_len
        for cell in cells
        for line in cell.text.split(allow_blank=True)
        for number, piece in enumerate(_pieces(line))
    )


def _pieces(line: Text) -> list[Text]:
    """Split a line where it may wrap; leading blanks stay with the first piece, others with the piece before them."""
    text = line.plain
    ends = (match.end() for match in _PIECE.finditer(text, len(text) - len(text.lstrip())))
    return list(line.divide([end for end in ends if end < len(text)]))


def _rstripped(text: Text) -> Text:
    copy = text.copy()
    copy.rstrip()
    return copy


def _fit(natural: Sequence[int], least: Sequence[int], available: int) -> list[int]:
    """Shrink the widest columns until all fit: first without cutting words, then as far as needed."""
    widths = list(natural)
    for floor in (least, [1] * len(widths)):
        while sum(widths) > available:
            shrinkable = [index for index, width in enumerate(widths) if width > floor[index]]
            if not shrinkable:
                break
            widths[max(shrinkable, key=lambda index: widths[index])] -= 1
    return widths


def _wrap(cell: Hanging, width: int) -> list[Text]:
    """Return the lines of a cell, each at most `width` wide."""
    indent = cell.indent if len(cell.indent) < width else ""
    return [part for line in cell.text.split(allow_blank=True) for part in _wrap_line(line, width, indent)]


def _wrap_line(line: Text, width: int, indent: str) -> Iterator[Text]:
    current = Text()
    for piece in _pieces(line):
        rest, word = piece, _rstripped(piece)
        if current and current.cell_len + word.cell_len > width:
            yield _rstripped(current)
            current = Text(indent)
        while current.cell_len + word.cell_len > width:  # the word does not fit on a line of its own
            end = max(1, width - current.cell_len)
            yield current + word[:end]
            word = rest = word[end:]
            current = Text(indent)
        current += rest
    yield _rstripped(current)


def _without_trailing_blanks(line: Iterable[Segment]) -> list[Segment]:
    segments = list(line)
    while segments and not segments[-1].text.strip():
        segments.pop()
    if segments:
        last = segments[-1]
        segments[-1] = Segment(last.text.rstrip(), last.style, last.control)
    return segments

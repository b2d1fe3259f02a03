"""Write self-contained HTML pages: no scripts, no network, nothing that needs another file."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mupscale_cli import __version__

_CSS = """
:root { --ink: #1b1b2f; --gray: #6b7080; --rule: #e4e6ec; --good: #1f7a4d; --bad: #b3261e; --soft: #f7f8fa; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.25rem 4rem; color: var(--ink); background: white;
       font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; padding-top: .9rem; border-top: 1px solid var(--rule); }
p { margin: .4rem 0; }
.gray { color: var(--gray); }
.verdict { display: inline-block; margin: .8rem 0 .2rem; padding: .3rem .9rem; border-radius: 999px; color: white;
           background: var(--good); font-weight: 600; }
.verdict.bad { background: var(--bad); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .6rem 0; }
th, td { padding: .25rem 1.4rem .25rem 0; text-align: left; vertical-align: top; }
th { color: var(--gray); font-weight: 600; border-bottom: 1px solid var(--rule); }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.bad td { color: var(--bad); font-weight: 600; }
code, pre { font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
pre { background: var(--soft); padding: .8rem 1rem; border-radius: 6px; overflow-x: auto; white-space: pre; }
figure { margin: .6rem 0; }
figure svg { max-width: 100%; height: auto; }
figcaption { color: var(--gray); font-size: .9rem; }
summary { cursor: pointer; }
@media print { body { max-width: none; padding: 0; } h2 { break-after: avoid; } figure { break-inside: avoid; } }
"""


def page(title: str, sections: Iterable[str]) -> str:
    """Return an HTML document with a title and sections."""
    body = "\n".join(sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n{body}\n"
        f'<p class="gray">written by mupscale {escaped(__version__)}</p>\n</body>\n</html>\n'
    )


def escaped(value: object) -> str:
    """Return a value as text of an HTML document."""
    return html.escape(str(value))


def section(title: str, *content: str) -> str:
    """Render a section with a heading."""
    return "\n".join((f"<section>\n<h2>{escaped(title)}</h2>", *content, "</section>"))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], numbers: Sequence[str] = ()) -> str:
    """Render a table; a row that starts with `!` is marked as wrong."""
    kinds = [' class="number"' if column in numbers else "" for column in columns]
    lines = ["".join(f"<th{kind}>{escaped(name)}</th>" for kind, name in zip(kinds, columns, strict=True))]
    marks = [""]
    for row in rows:
        is_wrong = row[0] == "!"
        cells = row[1:] if is_wrong else row
        lines.append("".join(f"<td{kind}>{escaped(cell)}</td>" for kind, cell in zip(kinds, cells, strict=True)))
        marks.append(' class="bad"' if is_wrong else "")
    body = "\n".join(f"<tr{mark}>{line}</tr>" for mark, line in zip(marks, lines, strict=True))
    return f'<div class="scroll"><table>\n{body}\n</table></div>'


def caption(text: str) -> str:
    """Render a paragraph that explains what stands beside it."""
    return f'<p class="gray">{escaped(text)}</p>'


def paragraph(text: str) -> str:
    """Render a paragraph."""
    return f"<p>{escaped(text)}</p>"


def number(value: object) -> str:
    """Return a difference with two digits; the record has infinities as strings."""
    return f"{float(str(value)):.1e}"


def last_part(path: str) -> str:
    """Return the name that a path ends with."""
    return path.rstrip("/").rpartition("/")[2] or path


def details(title: str, content: Mapping[str, Any]) -> str:
    """Render a JSON document that opens with a click."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    return f"<details>\n<summary>{escaped(title)}</summary>\n<pre>{escaped(text)}</pre>\n</details>"

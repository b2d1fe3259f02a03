"""Read command lines and their output from the documentation."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
MANUAL = ROOT / "mupscale_cli" / "cli" / "pages"
PAGES = sorted(MANUAL.glob("*.md"))
DOCUMENTS = [ROOT / "README.md", ROOT / "recipes" / "README.md", *PAGES]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"`([^`\n]+)`")
_ENDS = ("|", "||", ">", ";")


@dataclass(frozen=True)
class Line:
    """A command line, the file that its output is redirected to, and its transcript."""

    words: tuple[str, ...]
    into: str | None
    shown: str

    def __str__(self) -> str:
        return shlex.join(self.words)


def blocks(file: Path, *kinds: str) -> Iterator[str]:
    """Yield the fenced blocks of some languages."""
    for kind, text in _FENCE.findall(file.read_text(encoding="utf-8")):
        if kind in kinds:
            yield text


def lines(file: Path) -> Iterator[Line]:
    """Yield every command line of a document, in order."""
    for text in blocks(file, "sh", "console", "bash"):
        yield from (shell_lines(text) if not text.lstrip().startswith("$ ") else transcript(text))


def shell_lines(text: str) -> Iterator[Line]:
    for line in text.splitlines():
        for command in line.split(" && "):
            yield from _line(command, "")


def transcript(text: str) -> Iterator[Line]:
    is_demo = text.startswith("$ mupscale demo")  # its output contains command lines
    for part in [text[2:]] if is_demo else re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        yield from _line(command, shown)


def _line(command: str, shown: str) -> Iterator[Line]:
    assigned = re.fullmatch(r"\w+=\$\((.*?)\)(.*)", command.strip())
    command = "".join(assigned.groups()) if assigned else command
    words = shlex.split(command, comments=True)
    end = next((place for place, word in enumerate(words) if word in _ENDS), len(words))
    into = words[end + 1] if words[end : end + 1] == [">"] else None
    if words[:1] == ["srun"]:
        words, end = words[1:], end - 1
    if words[:end]:
        yield Line(tuple(words[:end]), into, shown)


def spans(file: Path) -> Iterator[str]:
    """Yield the inline code of a document."""
    for code in _CODE.findall(_FENCE.sub("", file.read_text(encoding="utf-8"))):
        yield code.replace("\\|", "|")


_MASKED = (
    (re.compile(r"\d\.\d+e[+-]\d+|0e\+00"), "<tiny>"),  # rounding errors differ between machines
    (re.compile(r"`model[.\w]*`"), "<module>"),  # modules may have equal errors
)


def differences(shown: str, printed: str) -> Iterator[str]:
    """Yield the pieces of a transcript that are not in the output. `…` separates pieces; line breaks do not count."""
    printed = _plain(printed)
    place = 0
    for piece in re.split(r"…|^\.\.\.$", shown, flags=re.MULTILINE):
        found = printed.find(_plain(piece), place)
        if found < 0:
            yield piece
        else:
            place = found


def _plain(text: str) -> str:
    for pattern, mask in _MASKED:
        text = pattern.sub(mask, text)
    return " ".join(text.split())

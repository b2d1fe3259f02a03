"""Write the help of every command again, as `tests/cli/help/COLUMNS.txt` holds it: `python tests/help_pages.py`."""

from __future__ import annotations

import os
from pathlib import Path

from cli_runner import commands_of, run

FOLDER = Path(__file__).with_name("cli") / "help"
COLUMNS = (80, 120)


def help_of_all(columns: int) -> str:
    """Return the help of every command at a width of the terminal, each below its command line."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(columns)
    try:
        commands = ("", "recipes", "plot", *(" ".join(words) for words in commands_of()))
        lines = [f"$ mupscale {command} --help".replace("  ", " ") for command in commands]
        texts = [run(*command.split(), "--help").out for command in commands]
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
    return "\n".join(f"{line}\n{text}" for line, text in zip(lines, texts, strict=True))


if __name__ == "__main__":
    for width in COLUMNS:
        (FOLDER / f"{width}.txt").write_text(help_of_all(width), encoding="utf-8")

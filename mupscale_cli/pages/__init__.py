"""The manual: one Markdown file a topic, beside this one."""

from __future__ import annotations

from pathlib import Path

from mupscale_cli.errors import MupscaleError
from mupscale_cli.language import suggest


def page_titles() -> dict[str, str]:
    """Every topic, and the title of its page."""
    files = sorted(Path(__file__).parent.glob("*.md"))
    return {file.stem: file.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ") for file in files}


def page_text(topic: str) -> str:
    """A page, as Markdown.

    Raises:
        MupscaleError: there is none of this name.
    """
    titles = page_titles()
    if topic not in titles:
        raise MupscaleError(f"there is no page `{topic}`", hint=suggest(topic, titles))
    return Path(__file__).with_name(f"{topic}.md").read_text(encoding="utf-8")

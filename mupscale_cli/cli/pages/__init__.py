"""The manual: one Markdown file a topic, beside this one."""

from __future__ import annotations

import re
from pathlib import Path

from mupscale_cli.errors import MupscaleError
from mupscale_cli.text import suggest

_INTO_SOURCES = re.compile(r"\[([^]]*)\]\(\.\./\.\./([^)#]*)[^)]*\)")


def page_titles() -> dict[str, str]:
    """Every topic, and the title of its page."""
    files = sorted(Path(__file__).parent.glob("*.md"))
    return {file.stem: file.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ") for file in files}


def page_text(topic: str) -> str:
    """A page, as Markdown; of links into the sources only where they lead to, since a reader may not have those.

    Raises:
        MupscaleError: there is none of this name.
    """
    titles = page_titles()
    if topic not in titles:
        raise MupscaleError(f"there is no page `{topic}`", hint=suggest(topic, titles))
    text = Path(__file__).with_name(f"{topic}.md").read_text(encoding="utf-8")
    return _INTO_SOURCES.sub(lambda link: f"{link[1]} (`{link[2]}` of the sources)", text)

"""The manual: one Markdown file per page, beside this module, sorted by what a reader comes for."""

from __future__ import annotations

import re
from pathlib import Path

from mupscale_cli.errors import MupscaleError
from mupscale_cli.text import suggest

# A kind of page, and its pages in the order in which one would read them.
KINDS = {
    "tutorial": ("tutorial",),
    "roles": ("huggingface", "modules", "releases", "cluster", "research"),
    "guides": (
        "install",
        "inspect",
        "shapes",
        "optimizers",
        "trainers",
        "growing",
        "noise",
        "methods",
        "depth",
        "adapters",
        "embeddings",
        "sweep",
        "recipes",
        "hub",
        "pipelines",
        "migration",
    ),
    "reference": ("commands", "architectures", "language", "json", "api", "formats", "files", "glossary"),
    "explanation": ("theory", "promises", "trust", "limits"),
}
_INTO_SOURCES = re.compile(r"\[([^]]*)\]\(\.\./\.\./\.\./([^)#]*)[^)]*\)")


def page_titles() -> dict[str, str]:
    """Return every page's title by the page's name, in reading order."""
    return {page: _text(page).partition("\n")[0].lstrip("# ") for pages in KINDS.values() for page in pages}


def page_text(topic: str) -> str:
    """Return a page as Markdown. Links into the sources become plain text: an installed package lacks those files.

    Raises:
        MupscaleError: no page has this name.
    """
    titles = page_titles()
    if topic not in titles:
        raise MupscaleError(f"there is no page `{topic}`", hint=suggest(topic, titles))
    return _INTO_SOURCES.sub(lambda link: f"{link[1]} (`{link[2]}` of the sources)", _text(topic))


def _text(page: str) -> str:
    return Path(__file__).with_name(f"{page}.md").read_text(encoding="utf-8")

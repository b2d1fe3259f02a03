"""The manual: one Markdown file a topic, beside this one."""

from __future__ import annotations

from importlib import resources

from mupscale_cli.errors import MupscaleError
from mupscale_cli.language import suggest

_SUFFIX = ".md"


def page_titles() -> dict[str, str]:
    """Every topic, and the title of its page."""
    files = [file for file in resources.files(__name__).iterdir() if file.name.endswith(_SUFFIX)]
    return {
        file.name.removesuffix(_SUFFIX): file.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        for file in sorted(files, key=lambda file: file.name)
    }


def page_text(topic: str) -> str:
    """A page, as Markdown.

    Raises:
        MupscaleError: there is none of this name.
    """
    titles = page_titles()
    if topic not in titles:
        raise MupscaleError(f"there is no page `{topic}`", hint=suggest(topic, titles))
    return resources.files(__name__).joinpath(topic + _SUFFIX).read_text(encoding="utf-8")

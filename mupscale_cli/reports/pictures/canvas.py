"""What all pictures share: matplotlib itself, colours, axes without clutter, and files that appear when complete."""

from __future__ import annotations

import importlib
import io
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mupscale_cli.checkpoints.staging import output_errors
from mupscale_cli.errors import OutputError, PictureError

SUFFIXES = (".png", ".svg")
INK, GREY, RULE = "#1b1b2f", "#6b7080", "#e4e6ec"
ACCENT, COOL = "#d1495b", "#30638e"
_STYLE = {
    "svg.hashsalt": "mupscale",  # the same picture is the same file
    "svg.fonttype": "none",  # text stays text: small, and searchable
    "font.size": 9,
    "legend.frameon": False,
}


def check_matplotlib(hint: str = "pip install 'mupscale[plot]'") -> None:
    """Better before hours of work than after them.

    Raises:
        PictureError: matplotlib is not installed.
    """
    _import("matplotlib", hint)


def _import(name: str, hint: str = "pip install 'mupscale[plot]'") -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise PictureError("the picture is drawn with matplotlib, which is not installed", hint=hint) from error


def new_figure(width: float, height: float) -> Any:
    """A blank figure, which needs no display.

    Args:
        width: in inches.
        height: in inches.
    """
    return _import("matplotlib.figure").Figure(figsize=(width, height), layout="constrained", facecolor="white")


def colours(name: str) -> Any:
    """A colour map of matplotlib."""
    return _import("matplotlib").colormaps[name]


def dress(panel: Any, *, bottom: bool = True) -> None:
    """Axes with a grid behind the data and nothing that is not needed."""
    panel.grid(visible=True, color=RULE, linewidth=0.8)
    panel.set_axisbelow(True)
    panel.tick_params(which="both", colors=GREY, length=0, labelsize=8)
    for side in ("top", "right", "left", "bottom"):
        panel.spines[side].set_visible(bottom and side == "bottom")
        panel.spines[side].set_color(RULE)


def heading(figure: Any, title: str) -> None:
    """The title above everything."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK)


@contextmanager
def style() -> Iterator[None]:
    """The project's style while something is drawn or saved."""
    with _import("matplotlib").rc_context(_STYLE):
        yield


def image(figure: Any, kind: str) -> bytes:
    """A figure as a file's content.

    Args:
        figure: what was drawn.
        kind: `png` or `svg`.
    """
    stream = io.BytesIO()
    with style():
        figure.savefig(stream, format=kind, dpi=160, metadata={"Software": None} if kind == "png" else {"Date": None})
    return stream.getvalue()


def inline_svg(figure: Any, prefix: str) -> str:
    """A figure as an element of a HTML document.

    Args:
        figure: what was drawn.
        prefix: of all its ids, which must be unique in the document.
    """
    text = image(figure, "svg").decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", text)
    seen: set[str] = set()

    def once(match: re.Match[str]) -> str:
        known = match.group() in seen
        seen.add(match.group())
        return "" if known else match.group()

    return re.sub(r' id="[^"]*"', once, text)  # what is alike has one id, by its content


def check_picture(file: Path, *, overwrite: bool) -> None:
    """Refuse a picture that could not be written, before anything is computed for it.

    Raises:
        PictureError: it is of no kind that is known, or matplotlib is not installed.
        OutputError: it exists, or its folder does not.
    """
    if file.suffix.lower() not in SUFFIXES:
        raise PictureError(f"`{file}` is no kind of picture that is known", hint="end its name in .png or .svg")
    check_file(file, overwrite=overwrite)
    check_matplotlib()


def check_file(file: Path, *, overwrite: bool) -> None:
    """Refuse an output that exists, or has no folder to be in.

    Raises:
        OutputError: that is so.
    """
    if file.exists() and (not overwrite or file.is_dir()):
        raise OutputError(f"`{file}` exists", hint="choose another name, or replace it with `--overwrite`")
    if not file.parent.is_dir():
        raise OutputError(f"there is no folder `{file.parent}`", hint="make it, or choose another place")


def save(figure: Any, file: Path) -> None:
    """Save a figure; the kind of image follows from the file's suffix.

    Raises:
        OutputError: the disk refuses.
    """
    publish(file, image(figure, file.suffix.lower().removeprefix(".")))


def publish(file: Path, content: bytes) -> None:
    """Write a file that appears under its name when it is complete, in place of what was there.

    Raises:
        OutputError: the disk refuses.
    """
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        with output_errors(file):
            with open(temporary, "xb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)

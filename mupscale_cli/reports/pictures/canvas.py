"""Set up matplotlib for all pictures: colors, plain axes, and output files that appear when complete."""

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

from mupscale_cli.checkpoints.output_files import output_errors
from mupscale_cli.errors import OutputError, PictureError, install_extra

SUFFIXES = (".png", ".svg")
INK, GRAY, RULE = "#1b1b2f", "#6b7080", "#e4e6ec"
ACCENT, COOL = "#d1495b", "#30638e"
_STYLE = {
    "svg.hashsalt": "mupscale",  # equal pictures are equal files
    "svg.fonttype": "none",  # text stays text: small and searchable
    "font.size": 9,
    "legend.frameon": False,
}


def check_matplotlib(extra: str = "plot", instead: str | None = None) -> None:
    """Check that matplotlib is installed, before hours of work rather than after.

    Args:
        extra: the extra that has it, for the command that runs.
        instead: what else the user can do.

    Raises:
        PictureError: matplotlib is not installed.
    """
    hint = install_extra(extra)
    _import("matplotlib", hint if instead is None else f"{hint}, or {instead}")


def _import(name: str, hint: str = install_extra("plot")) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise PictureError("drawing a picture needs matplotlib, which is not installed", hint=hint) from error


def new_figure(width: float, height: float) -> Any:
    """Create a blank figure, without a display.

    Args:
        width: width in inches.
        height: height in inches.
    """
    return _import("matplotlib.figure").Figure(figsize=(width, height), layout="constrained", facecolor="white")


def color_map(name: str) -> Any:
    """Return a color map of matplotlib."""
    return _import("matplotlib").colormaps[name]


def dress(panel: Any, *, bottom: bool = True) -> None:
    """Style axes: a grid behind the data, no ticks, and at most the bottom line of the frame."""
    panel.grid(visible=True, color=RULE, linewidth=0.8)
    panel.set_axisbelow(True)
    panel.tick_params(which="both", colors=GRAY, length=0, labelsize=8)
    for side in ("top", "right", "left", "bottom"):
        panel.spines[side].set_visible(bottom and side == "bottom")
        panel.spines[side].set_color(RULE)


def whole_numbers(axis: Any) -> None:
    """Put ticks at whole numbers only: steps, rows and columns are counted, not measured."""
    axis.set_major_locator(_import("matplotlib.ticker").MaxNLocator(integer=True))


def legend_beside(figure: Any) -> None:
    """Put the legend of all panels beside them, where it covers nothing."""
    figure.legend(loc="outside right center", frameon=False, labelcolor=INK, fontsize=8)


def heading(figure: Any, title: str) -> None:
    """Put a title above all panels."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK)


@contextmanager
def style() -> Iterator[None]:
    """Apply the project's style while a figure is drawn or saved."""
    with _import("matplotlib").rc_context(_STYLE):
        yield


def image(figure: Any, kind: str) -> bytes:
    """Render a figure as the content of an image file; `kind` is `png` or `svg`."""
    stream = io.BytesIO()
    with style():
        figure.savefig(stream, format=kind, dpi=160, metadata={"Software": None} if kind == "png" else {"Date": None})
    return stream.getvalue()


def inline_svg(figure: Any, prefix: str) -> str:
    """Render a figure as an SVG element of an HTML document.

    Args:
        figure: the figure.
        prefix: prefix of the element's ids, unique in the document.
    """
    text = image(figure, "svg").decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", text)
    seen: set[str] = set()

    def keep_first(match: re.Match[str]) -> str:
        is_repeated = match.group() in seen
        seen.add(match.group())
        return "" if is_repeated else match.group()

    return re.sub(r' id="[^"]*"', keep_first, text)  # matplotlib derives ids from content, so equal shapes share one


def check_picture(file: Path, *, overwrite: bool) -> None:
    """Check that a picture can be written, before it is computed.

    Raises:
        PictureError: the format is unknown, or matplotlib is not installed.
        OutputError: the file exists, or its folder does not.
    """
    if file.suffix.lower() not in SUFFIXES:
        raise PictureError(f"`{file}` has an unknown picture format", hint="end its name in .png or .svg")
    check_file(file, overwrite=overwrite)
    check_matplotlib()


def check_report(file: Path, *, overwrite: bool) -> None:
    """Check that a report can be written, before what it reports is computed.

    Raises:
        PictureError: its name does not end in .html, or matplotlib is not installed.
        OutputError: it exists, or its folder does not.
    """
    if file.suffix.lower() not in (".html", ".htm"):
        raise PictureError(
            f"the report `{file}` does not end in .html", hint=f"for example `--report {file.stem}.html`"
        )
    check_file(file, overwrite=overwrite)
    check_matplotlib()


def check_file(file: Path, *, overwrite: bool) -> None:
    """Check that an output file can be written.

    Raises:
        OutputError: the file exists, or its folder does not.
    """
    if file.exists() and (not overwrite or file.is_dir()):
        raise OutputError(f"`{file}` exists", hint="choose another name, or replace it with `--overwrite`")
    if not file.parent.is_dir():
        raise OutputError(f"the folder `{file.parent}` does not exist", hint="create it, or choose another one")


def save(figure: Any, file: Path) -> None:
    """Save a figure in the format of the file's suffix.

    Raises:
        OutputError: the file cannot be written.
    """
    publish(file, image(figure, file.suffix.lower().removeprefix(".")))


def publish(file: Path, content: bytes) -> None:
    """Write a file in one step: it appears, or replaces an older one, when it is complete.

    Raises:
        OutputError: the file cannot be written.
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

"""`mupscale doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from mupscale_cli.cli import options, output
from mupscale_cli.cli.output import bytes_text

if TYPE_CHECKING:
    from mupscale_cli.tasks.doctor import Environment


def doctor(as_json: options.Json = False) -> None:
    """Show versions, devices, memory, disk and settings, to paste into a bug report.

    It holds no secrets: of a token only whether there is one, and no user's name in paths.
    """
    from mupscale_cli.tasks.doctor import inspect_environment

    found = inspect_environment()
    if as_json:
        output.print_document("doctor", found.as_record())
        return
    result = output.table("", "")
    result.show_header = False
    for name, text in _lines(found):
        result.add_row(name, Text(text))
    output.stdout().print(result)


def _lines(found: Environment) -> list[tuple[str, str]]:
    """What is told, line by line."""
    from mupscale_cli.tasks.doctor import shorten_home

    missing = [name for name, is_there in found.extras.items() if not is_there]
    there = [name for name, is_there in found.extras.items() if is_there]
    extras = ", ".join(there) or "none"
    if missing:
        extras += f"; not: {', '.join(missing)} (pip install 'mupscale[{','.join(missing)}]')"
    count, folder = found.recipes
    hub = found.hub
    lines = [
        ("mupscale", f"{found.mupscale}, in {shorten_home(found.place)}"),
        ("python", found.python),
        ("system", f"{found.system}, {output.counted(found.num_cores, 'core')}"),
        *((name, text or "not installed") for name, text in found.packages.items()),
        ("extras", extras),
        *((device.name, device.about + _space(device.num_bytes, device.free_bytes)) for device in found.devices),
    ]
    if found.torch_problem is not None:
        lines.append(("torch", f"cannot be used: {found.torch_problem}"))
    if found.memory is not None:
        lines.append(("memory", _space(*found.memory).removeprefix(", ")))
    lines += [
        ("disk", f"{shorten_home(found.folder)}{_space(*found.disk)}"),
        ("recipes", f"{count} in {shorten_home(folder)}"),
        ("HF_HOME", shorten_home(hub.home)),
        ("hub cache", shorten_home(hub.cache) + (_space(*found.cache_disk) if found.cache_disk else "")),
        ("hub", f"{hub.endpoint}{', offline' if hub.offline else ''}"),
        ("hub token", hub.token or "none"),
    ]
    return [(name, " ".join(text.split())) for name, text in lines]


def _space(num_bytes: int | None, free: int | None) -> str:
    return "" if num_bytes is None or free is None else f", {bytes_text(free)} free of {bytes_text(num_bytes)}"

"""`mupscale doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from mupscale_cli.cli import options, output
from mupscale_cli.cli.output import bytes_text

if TYPE_CHECKING:
    from mupscale_cli.tasks.doctor import Environment


def doctor(as_json: options.Json = False) -> None:
    """Print versions, devices, memory, disk and settings for a bug report.

    The output holds no secrets: it only says whether there is a Hub token, and paths omit the user's name.
    """
    from mupscale_cli.tasks.doctor import inspect_environment

    environment = inspect_environment()
    if as_json:
        output.print_document("doctor", environment.as_record())
        return
    result = output.table("", "")
    result.show_header = False
    for name, text in _rows(environment):
        result.add_row(name, Text(text))
    output.stdout().print(result)


def _rows(environment: Environment) -> list[tuple[str, str]]:
    """Return the table's rows as names and values."""
    from mupscale_cli.tasks.doctor import shorten_home

    missing = [name for name, is_installed in environment.extras.items() if not is_installed]
    extras = ", ".join(name for name in environment.extras if name not in missing) or "none"
    if missing:
        extras += f"; missing: {', '.join(missing)} (mupscale help install)"
    count, folder = environment.recipes
    hub = environment.hub
    rows = [
        ("mupscale", f"{environment.mupscale}, in {shorten_home(environment.place)}"),
        ("python", environment.python),
        ("system", f"{environment.system}, {output.counted(environment.num_cores, 'core')}"),
        *((name, text or "not installed") for name, text in environment.packages.items()),
        ("extras", extras),
        *((device.name, device.about + _space(device.num_bytes, device.free_bytes)) for device in environment.devices),
    ]
    if environment.torch_problem is not None:
        rows.append(("torch", f"cannot be used: {environment.torch_problem}"))
    if environment.memory is not None:
        rows.append(("memory", _space(*environment.memory).removeprefix(", ")))
    rows += [
        ("disk", f"{shorten_home(environment.folder)}{_space(*environment.disk)}"),
        ("recipes", f"{count} in {shorten_home(folder)}"),
        ("HF_HOME", shorten_home(hub.home)),
        ("hub cache", shorten_home(hub.cache) + (_space(*environment.cache_disk) if environment.cache_disk else "")),
        ("hub", f"{hub.endpoint}{', offline' if hub.offline else ''}"),
        ("hub token", hub.token or "none"),
    ]
    return [(name, " ".join(text.split())) for name, text in rows]


def _space(num_bytes: int | None, free: int | None) -> str:
    return "" if num_bytes is None or free is None else f", {bytes_text(free)} free of {bytes_text(num_bytes)}"

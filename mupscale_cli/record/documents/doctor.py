"""Documents of `--json`: what `doctor` prints."""

from __future__ import annotations

from typing import Annotated, TypedDict

from mupscale_cli.record.types import Count


class Device(TypedDict):
    """A device of torch."""

    name: Annotated[str, "Name in torch."]
    about: Annotated[str, "Description."]
    bytes: Annotated[Count | None, "Memory in bytes; null if it uses the machine's memory."]
    free_bytes: Annotated[Count | None, "Free memory in bytes; null if it uses the machine's memory."]


class Space(TypedDict):
    """Size of memory or of a disk."""

    bytes: Annotated[Count, "Total bytes."]
    free_bytes: Annotated[Count, "Free bytes."]


class Disk(Space):
    """The disk of the current folder."""

    folder: Annotated[str, "The current folder, where outputs go by default."]


class Hub(TypedDict):
    """Settings of the Hub's client, without secrets."""

    hf_home: Annotated[str, "HF_HOME or its default."]
    cache: Annotated[str, "Folder of downloads."]
    endpoint: Annotated[str, "Address of the Hub, without user name and password."]
    offline: Annotated[bool, "Whether downloads are disabled."]
    token: Annotated[str | None, "Where the token comes from; null if there is none."]
    disk: Annotated[Space | None, "Disk of the cache; null if unknown."]


class BuiltIn(TypedDict):
    """The built-in recipes."""

    count: Annotated[Count, "Number of recipes."]
    folder: Annotated[str, "Folder of the recipes."]


class Doctor(TypedDict):
    """Output of `mupscale doctor`."""

    mupscale: Annotated[str, "Version of mupscale."]
    installed_in: Annotated[str, "Folder that mupscale is installed in."]
    python: Annotated[str, "Version of Python."]
    system: Annotated[str, "Operating system and architecture."]
    packages: Annotated[dict[str, str | None], "Version of each package; null if it is not installed."]
    extras: Annotated[dict[str, bool], "Whether each extra is completely installed."]
    devices: Annotated[list[Device], "Devices of torch."]
    torch_problem: Annotated[str | None, "Why torch cannot be imported; null if it can."]
    cores: Annotated[Count, "Number of usable processor cores."]
    memory: Annotated[Space | None, "Memory of the machine; null if unknown."]
    disk: Annotated[Disk, "Disk of the current folder."]
    hub: Annotated[Hub, "Settings of the Hub's client, without secrets."]
    recipes: Annotated[BuiltIn, "The built-in recipes."]

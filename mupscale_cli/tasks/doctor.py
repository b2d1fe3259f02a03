"""Describe a machine for a bug report: versions, devices, memory, disk, extras and settings of the Hub."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mupscale_cli import __version__
from mupscale_cli.architecture.loading import BUILT_IN, recipe_files
from mupscale_cli.checkpoints.hub.environment import HubSettings, hub_settings
from mupscale_cli.checkpoints.libraries import LIBRARIES, TRANSFORMERS
from mupscale_cli.engine.cores import num_cores
from mupscale_cli.engine.memory import free_memory
from mupscale_cli.text import counted

PACKAGES = (
    "torch",
    "safetensors",
    "transformers",
    "huggingface-hub",
    "typer",
    "rich",
    "pyyaml",
    "numpy",
    "matplotlib",
    "accelerate",
)
# The modules that each extra of the package adds.
EXTRAS = {
    "hf": ("transformers", "accelerate"),
    "plot": ("matplotlib",),
    "sweep": ("transformers", "accelerate", "matplotlib"),
    **{library.extra: (library.name,) for library in LIBRARIES if library.extra and library is not TRANSFORMERS},
}


@dataclass(frozen=True, slots=True)
class Device:
    """A device of torch.

    Attributes:
        name: torch's name for it, such as `cpu` or `cuda:0`.
        about: a description.
        num_bytes: its memory in bytes; None if it uses the machine's.
        free_bytes: its free memory in bytes; None if it uses the machine's.
    """

    name: str
    about: str
    num_bytes: int | None = None
    free_bytes: int | None = None

    def as_record(self) -> dict[str, Any]:
        """Return the device as `--json` prints it."""
        return {"name": self.name, "about": self.about, "bytes": self.num_bytes, "free_bytes": self.free_bytes}


@dataclass(frozen=True)
class Environment:
    """The parts of a machine that mupscale depends on.

    Attributes:
        mupscale: version of mupscale.
        place: folder that mupscale is installed in.
        python: version and implementation of Python.
        system: operating system and architecture.
        packages: version of each package; None if it is not installed.
        extras: whether each extra is completely installed.
        devices: devices of torch; empty if torch cannot be imported.
        torch_problem: why torch cannot be imported; None if it can.
        num_cores: number of cores that this process may use.
        memory: total bytes of the machine and bytes free for this process; None if the system does not report them.
        folder: the current folder.
        disk: total and free bytes of the current folder's disk.
        cache_disk: total and free bytes of the disk of the Hub's cache; None if unknown.
        hub: settings of the Hub's client.
        recipes: number and folder of the built-in recipes.
    """

    mupscale: str
    place: Path
    python: str
    system: str
    packages: Mapping[str, str | None]
    extras: Mapping[str, bool]
    devices: tuple[Device, ...]
    torch_problem: str | None
    num_cores: int
    memory: tuple[int, int] | None
    folder: Path
    disk: tuple[int, int]
    cache_disk: tuple[int, int] | None
    hub: HubSettings
    recipes: tuple[int, Path]

    def as_record(self) -> dict[str, Any]:
        """Return the environment as `--json` prints it."""

        def space(sizes: tuple[int, int] | None) -> dict[str, int] | None:
            return None if sizes is None else {"bytes": sizes[0], "free_bytes": sizes[1]}

        return {
            "mupscale": self.mupscale,
            "installed_in": shorten_home(self.place),
            "python": self.python,
            "system": self.system,
            "packages": dict(self.packages),
            "extras": dict(self.extras),
            "devices": [device.as_record() for device in self.devices],
            "torch_problem": self.torch_problem,
            "cores": self.num_cores,
            "memory": space(self.memory),
            "disk": {"folder": shorten_home(self.folder), **(space(self.disk) or {})},
            "hub": {
                key: shorten_home(Path(value)) if key in ("hf_home", "cache") else value
                for key, value in self.hub.as_record().items()
            }
            | {"disk": space(self.cache_disk)},
            "recipes": {"count": self.recipes[0], "folder": shorten_home(self.recipes[1])},
        }


def inspect_environment() -> Environment:
    """Inspect this machine; imports torch."""
    hub = hub_settings()
    devices, problem = _devices()
    return Environment(
        mupscale=__version__,
        place=Path(__file__).parent.parent,
        python=f"{platform.python_version()} ({platform.python_implementation()})",
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        packages={name: _version(name) for name in PACKAGES},
        extras={name: all(map(_is_installed, modules)) for name, modules in EXTRAS.items()},
        devices=devices,
        torch_problem=problem,
        num_cores=num_cores(),
        memory=_memory(),
        folder=Path.cwd(),
        disk=_disk(Path.cwd()) or (0, 0),
        cache_disk=_disk(hub.cache),
        hub=hub,
        recipes=(len(recipe_files()), BUILT_IN),
    )


def shorten_home(path: Path) -> str:
    """Return a path with `~` for the home folder, so that it can be published without the user's name."""
    try:
        inside = path.relative_to(Path.home())
    except (ValueError, RuntimeError):
        return str(path)
    return str(Path("~") / inside)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _devices() -> tuple[tuple[Device, ...], str | None]:
    """Return torch's devices, or why torch does not work: bug reports are often about broken installations."""
    try:
        import torch

        devices = [
            Device("cpu", f"{counted(torch.get_num_threads(), 'thread')}, {platform.processor() or platform.machine()}")
        ]
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            devices.append(
                Device(f"cuda:{index}", f"{torch.cuda.get_device_name(index)}, CUDA {torch.version.cuda}", total, free)
            )
        if torch.backends.mps.is_available():
            devices.append(Device("mps", "Apple GPU"))
    except Exception as error:  # noqa: BLE001 (the report shows any problem)
        return (), f"{type(error).__name__}: {error}"
    return tuple(devices), None


def _memory() -> tuple[int, int] | None:
    """Return the machine's memory and what is free for this process, in bytes; None if unknown."""
    free = free_memory()
    if free is None or not hasattr(os, "sysconf"):
        return None
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), free
    except (OSError, ValueError):
        return None


def _disk(path: Path) -> tuple[int, int] | None:
    """Return total and free bytes of a path's disk, looking at the nearest existing folder; None if unknown."""
    for folder in (path, *path.parents):
        if folder.exists():
            try:
                usage = shutil.disk_usage(folder)
            except OSError:
                return None
            return usage.total, usage.free
    return None

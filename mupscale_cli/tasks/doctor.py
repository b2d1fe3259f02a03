"""What a bug report needs to know of a machine: versions, devices, memory, disk, extras, the Hub's settings."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mupscale_cli._version import __version__
from mupscale_cli.architecture.loading import BUILT_IN, recipe_files
from mupscale_cli.checkpoints.hub.environment import HubSettings, hub_settings
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
# What each extra of the package adds, by the names of what is imported.
EXTRAS = {
    "hf": ("transformers", "accelerate"),
    "plot": ("matplotlib",),
    "sweep": ("transformers", "accelerate", "matplotlib"),
}


@dataclass(frozen=True, slots=True)
class Device:
    """Something that torch computes on.

    Attributes:
        name: as torch calls it: `cpu`, `cuda:0`.
        about: what it is.
        num_bytes: its memory, None where that is the machine's.
        free_bytes: of that, None likewise.
    """

    name: str
    about: str
    num_bytes: int | None = None
    free_bytes: int | None = None

    def as_record(self) -> dict[str, Any]:
        """The device as `--json` shows it."""
        return {"name": self.name, "about": self.about, "bytes": self.num_bytes, "free_bytes": self.free_bytes}


@dataclass(frozen=True)
class Environment:
    """A machine, as far as mupscale has to do with it.

    Attributes:
        mupscale: its version.
        place: where it is installed.
        python: version and implementation.
        system: the operating system and its architecture.
        packages: the version of each package, None where it is not installed.
        extras: whether all of each extra is there.
        devices: what torch computes on; empty where torch cannot be imported.
        torch_problem: why it cannot, None where it can.
        num_cores: that this process may use.
        memory: of the machine and what this process may still take, in bytes; None where the system does not tell.
        folder: the current one.
        disk: size and free bytes of its disk.
        cache_disk: the same where the Hub's downloads go; None where that cannot be told.
        hub: settings of its client.
        recipes: how many are built in, and where.
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
        """The environment as `--json` shows it."""

        def space(found: tuple[int, int] | None) -> dict[str, int] | None:
            return None if found is None else {"bytes": found[0], "free_bytes": found[1]}

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
    """Look at this machine; imports torch."""
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
        num_cores=_num_cores(),
        memory=_memory(),
        folder=Path.cwd(),
        disk=_disk(Path.cwd()) or (0, 0),
        cache_disk=_disk(hub.cache),
        hub=hub,
        recipes=(len(recipe_files()), BUILT_IN),
    )


def shorten_home(path: Path) -> str:
    """A path as it can be published: without the user's name where it is in the user's folder."""
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
    """What torch finds; a broken installation is what a bug report is often about."""
    try:
        import torch

        found = [
            Device("cpu", f"{counted(torch.get_num_threads(), 'thread')}, {platform.processor() or platform.machine()}")
        ]
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            found.append(
                Device(f"cuda:{index}", f"{torch.cuda.get_device_name(index)}, CUDA {torch.version.cuda}", total, free)
            )
        if torch.backends.mps.is_available():
            found.append(Device("mps", "Apple GPU"))
    except Exception as error:  # noqa: BLE001 (whatever is wrong with it is what is told)
        return (), f"{type(error).__name__}: {error}"
    return tuple(found), None


def _num_cores() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> tuple[int, int] | None:
    """Memory of the machine, and what this process may still take of it."""
    free = free_memory()
    if free is None or not hasattr(os, "sysconf"):
        return None
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), free
    except (OSError, ValueError):
        return None


def _disk(path: Path) -> tuple[int, int] | None:
    """Size and free bytes of the disk of a path, or of the nearest folder above it that exists."""
    for folder in (path, *path.parents):
        if folder.exists():
            try:
                usage = shutil.disk_usage(folder)
            except OSError:
                return None
            return usage.total, usage.free
    return None

"""The files of a checkpoint's folder, before any of them is read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from mupscale_cli.checkpoints.fates import kind_of
from mupscale_cli.errors import CheckpointError
from mupscale_cli.text import shown


def list_files(folder: Path) -> Iterator[tuple[str, int | None]]:
    """Yield the path of every file of a directory, with `/`, and its size in bytes.

    Hidden folders, folders without permission and links to folders are not looked into: their paths end with `/`, and
    they have no size. Neither have links to nothing.

    Raises:
        CheckpointError: reading a file would not end (a pipe, a device), or its name is not UTF-8.
    """
    waiting = [folder]
    while waiting:
        for entry in os.scandir(waiting.pop()):
            name = Path(entry.path).relative_to(folder).as_posix()
            if not name.isascii() and name != name.encode("utf-8", "replace").decode("utf-8"):
                raise CheckpointError(f"{shown(entry.path)} has a name that is not UTF-8", hint="rename it")
            if entry.is_dir() and _names_a_file(name):
                raise CheckpointError(f"`{entry.path}` is not a plain file", hint="move it out of the model's folder")
            if entry.is_dir(follow_symlinks=False) and _is_open(entry):
                waiting.append(Path(entry.path))
            elif entry.is_dir():
                yield f"{name}/", None
            elif entry.is_file():
                yield name, entry.stat().st_size
            elif not Path(entry.path).exists():
                yield name, None
            else:
                raise CheckpointError(f"`{entry.path}` is not a plain file", hint="move it out of the model's folder")


def _names_a_file(name: str) -> bool:
    """Return whether a folder's name is one that is read as a file."""
    kind = kind_of(name)
    return name.endswith(".json") or (kind is not None and kind.with_state is not None)


def _is_open(folder: os.DirEntry[str]) -> bool:
    return not folder.name.startswith(".") and os.access(folder, os.R_OK | os.X_OK)


def require_own_file(file: Path, root: Path | None = None) -> Path:
    """Return a file whose content will be copied, after checking that it belongs to the checkpoint.

    An untrusted folder could contain a link to a private file, which would then be published with the output. Links
    inside the folder are allowed, as are links of the Hub's cache to its `blobs` two folders up. Weight files may link
    anywhere, since only tensors are read from them.

    Args:
        file: file to copy.
        root: folder of the checkpoint. Default: the folder of the file.

    Raises:
        CheckpointError: the file is a link that leads out of the checkpoint.
    """
    folder, real = (root or file.parent).resolve(), file.resolve()
    if real.is_relative_to(folder) or real.parent == folder.parent.parent / "blobs":
        return file
    raise CheckpointError(
        f"`{file}` links to `{real}`, which is outside the checkpoint and would be copied into the output",
        hint="replace the link with the file itself, or remove it",
    )

"""Which files of a source or an output are no longer what the record of the widening says of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mupscale_cli.checkpoints.config import CONFIG
from mupscale_cli.checkpoints.digests import file_digest, segments_digest
from mupscale_cli.checkpoints.reading import Checkpoint
from mupscale_cli.errors import CheckpointError

if TYPE_CHECKING:
    from mupscale_cli.record.types import Record


def source_resized(record: Record, source: Checkpoint) -> str | None:
    """The name of a file of the source that is not among those of the record, or has another size."""
    noted = record["source"]["files"]
    resized = (
        file
        for file in source_files(source)
        if file.name not in noted or noted[file.name]["bytes"] != file.stat().st_size
    )
    return next((file.name for file in resized), None)


def source_changed(record: Record, source: Checkpoint) -> str | None:
    """The name of a file of the source that is not what it was when the record was made.

    Raises:
        CheckpointError: one cannot be read.
    """
    noted = record["source"]["files"]
    changed = (file for file in source_files(source) if noted[file.name]["xxh128"] != file_digest(file))
    return source_resized(record, source) or next((file.name for file in changed), None)


def output_changed(record: Record, wide: Checkpoint) -> str | None:
    """The name of a file of the output that is not what was written.

    Raises:
        CheckpointError: one cannot be read.
    """
    digests = {name: noted["digest"] for name, noted in record["written"].items()}
    files = {file.name: file for file in wide.files}
    if wide.is_file:  # whatever it is called by now
        files = dict.fromkeys(digests, wide.path) if len(digests) == 1 else files
    if files.keys() != digests.keys():
        return min(files.keys() ^ digests.keys())
    return next((file.name for name, file in files.items() if segments_digest(file) != digests[name]), None)


def identities(source: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Return device, inode, size in bytes and time of change of every file that an output is made from, by name."""
    stats = {file.name: file.stat() for file in source_files(source)}
    return {name: (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def require_unchanged(source: Checkpoint, before: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a source whose files are no longer the ones that were hashed.

    Args:
        source: the narrow checkpoint, after the output was made from it.
        before: its `identities` before that.

    Raises:
        CheckpointError: a file was written to or replaced in between.
    """
    for name, identity in identities(source).items():
        if identity != before.get(name):
            raise CheckpointError(f"`{name}` of `{source.path}` changed while it was being read", hint="widen again")


def source_files(source: Checkpoint) -> tuple[Path, ...]:
    """The files of a checkpoint that an output is made from: its weights and, in a folder, its config.json."""
    config = source.path / CONFIG
    return (*source.files, config) if config.is_file() else source.files

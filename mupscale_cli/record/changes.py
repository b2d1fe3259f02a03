"""Compare the files of a source or an output with the record of the widening."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mupscale_cli.checkpoints.config import CONFIG
from mupscale_cli.checkpoints.digests import file_digest, segments_digest
from mupscale_cli.checkpoints.reading import Checkpoint

if TYPE_CHECKING:
    from mupscale_cli.record.types import Record


def source_resized(record: Record, source: Checkpoint) -> str | None:
    """Return the name of a source file that is new or has another size than in the record; None if all match."""
    recorded = record["source"]["files"]
    resized = (
        file
        for file in source_files(source)
        if file.name not in recorded or recorded[file.name]["bytes"] != file.stat().st_size
    )
    return next((file.name for file in resized), None)


def source_changed(record: Record, source: Checkpoint) -> str | None:
    """Return the name of a source file that has changed since the widening; None if none has.

    Raises:
        CheckpointError: a file cannot be read.
    """
    recorded = record["source"]["files"]
    changed = (file for file in source_files(source) if recorded[file.name]["xxh128"] != file_digest(file))
    return source_resized(record, source) or next((file.name for file in changed), None)


def output_changed(record: Record, wide: Checkpoint) -> str | None:
    """Return the name of an output file that has changed since the widening; None if none has.

    Raises:
        CheckpointError: a file cannot be read.
    """
    digests = {name: written["digest"] for name, written in record["written"].items()}
    files = {file.name: file for file in wide.files}
    if wide.is_file:  # it may have been renamed
        files = dict.fromkeys(digests, wide.path) if len(digests) == 1 else files
    if files.keys() != digests.keys():
        return min(files.keys() ^ digests.keys())
    return next((file.name for name, file in files.items() if segments_digest(file) != digests[name]), None)


def source_files(source: Checkpoint) -> tuple[Path, ...]:
    """Return the files of a checkpoint that an output is made from: its weights and, in a folder, config.json."""
    config = source.path / CONFIG
    return (*source.files, config) if config.is_file() else source.files

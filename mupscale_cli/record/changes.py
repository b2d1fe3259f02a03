"""Compare the files of a source or an output with the record of the widening."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mupscale_cli.checkpoints.digests import file_digest, segments_digest
from mupscale_cli.checkpoints.json_files import is_inner_path
from mupscale_cli.checkpoints.reading import Checkpoint
from mupscale_cli.record.reading import companion_path

if TYPE_CHECKING:
    from mupscale_cli.record.types import Record, Written


def source_resized(record: Record, source: Checkpoint) -> str | None:
    """Return the name of a source file that is new, missing or of another size than recorded; None if all match."""
    recorded, present = record["source"]["files"], source_files(source)
    if missing := recorded.keys() ^ present.keys():
        return min(missing)
    return next((name for name, file in present.items() if recorded[name]["bytes"] != file.stat().st_size), None)


def source_changed(record: Record, source: Checkpoint) -> str | None:
    """Return the name of a source file that has changed since the widening; None if none has.

    Raises:
        CheckpointError: a file cannot be read.
    """
    recorded = record["source"]["files"]
    resized = source_resized(record, source)
    files = source_files(source).items()
    return resized or next((name for name, file in files if recorded[name]["xxh128"] != file_digest(file)), None)


def output_changed(record: Record, wide: Checkpoint) -> str | None:
    """Return the name of an output file that has changed since the widening; None if none has.

    The optimizer state has a digest of its own.

    Raises:
        CheckpointError: a file cannot be read.
    """
    for name, other in record["others"].items():
        file = companion_path(wide, name)
        if not is_inner_path(name) or not file.is_file() or segments_digest(file) != other["digest"]:
            return name
    return weights_changed(record["written"], wide)


def weights_changed(written: Mapping[str, Written], wide: Checkpoint) -> str | None:
    """Return the name of a file of an output's weights that is not as it was written; None if all are.

    Args:
        written: the digest of each file, computed while it was written.
        wide: the output.

    Raises:
        CheckpointError: a file cannot be read.
    """
    files = {wide.inner_name(file): file for file in wide.files}
    if wide.is_file:  # it may have been renamed
        files = dict.fromkeys(written, wide.path) if len(written) == 1 else files
    if files.keys() != written.keys():
        return min(files.keys() ^ written.keys())
    return next((name for name, file in files.items() if segments_digest(file) != written[name]["digest"]), None)


def source_files(source: Checkpoint) -> dict[str, Path]:
    """Return the files of a checkpoint that an output is made from, except those of its optimizer, by their names."""
    config = () if source.config_file is None else (source.config_file,)
    own = {source.inner_name(file): file for file in source.files}
    return {**own, **{file.name: file for file in config}, **source.files_beside}

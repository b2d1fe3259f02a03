"""Which files of a source or an output are no longer what the record of the widening says of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mupscale_cli.checkpoints.config import CONFIG
from mupscale_cli.checkpoints.digests import TensorDigest, safetensors_digest
from mupscale_cli.checkpoints.reading import Checkpoint

_HASH_BYTES = 1 << 20


def source_resized(record: Mapping[str, Any], source: Checkpoint) -> str | None:
    """The name of a file of the source that is not among those of the record, or has another size."""
    files = record.get("source", {}).get("files", {})
    config = config_file(source)
    for file in source.files if config is None else (*source.files, config):
        noted = files.get(file.name)
        if noted is None or noted.get("bytes") != file.stat().st_size:
            return str(file.name)
    return None


def source_changed(
    record: Mapping[str, Any], source: Checkpoint, known: Mapping[str, TensorDigest] | None = None
) -> str | None:
    """The name of a file of the source that is not what it was when the record was made.

    Args:
        record: of the widening.
        source: the narrow checkpoint.
        known: hashes of its tensors, as far as they have been taken; what they lack is read.
    """
    if name := source_resized(record, source):
        return name
    files = record.get("source", {}).get("files", {})
    config = config_file(source)
    for file in source.files if config is None else (*source.files, config):
        noted = files[file.name]
        found = safetensors_digest(file, known) if "digest" in noted else file_digest(file)["sha256"]
        if found != noted.get("digest", noted.get("sha256")):
            return file.name
    return None


def output_changed(record: Mapping[str, Any], wide: Checkpoint) -> str | None:
    """The name of a file of the output that is not what was written; None too where the record says nothing of it."""
    files = record.get("written", {})
    if not files:
        return None
    if wide.is_file:  # whatever it is called by now
        noted, *others = files.values()
        return None if not others and noted["digest"] == safetensors_digest(wide.path) else str(wide.path.name)
    by_name = {file.name: file for file in wide.files}
    if by_name.keys() != files.keys():
        return str(min(by_name.keys() ^ files.keys()))
    for name, noted in files.items():
        if safetensors_digest(by_name[name]) != noted["digest"]:
            return str(name)
    return None


def config_file(source: Checkpoint) -> Path | None:
    """The config.json of a checkpoint, if it has one."""
    config = source.path / CONFIG
    return config if config.is_file() else None


def file_digest(file: Path) -> dict[str, Any]:
    """Size in bytes and SHA-256 of a file."""
    digest = hashlib.sha256()
    buffer = bytearray(_HASH_BYTES)
    with open(file, "rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
    return {"bytes": file.stat().st_size, "sha256": digest.hexdigest()}

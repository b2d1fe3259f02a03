"""Journals: lists of finished shards, kept with an unfinished output so that an interrupted run can be resumed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mupscale_cli.checkpoints.digests import segments_digest
from mupscale_cli.checkpoints.json_files import is_file_name, read_json
from mupscale_cli.checkpoints.staging import replace_json
from mupscale_cli.errors import CheckpointError

JOURNAL = ".mupscale-journal.json"


@dataclass(frozen=True)
class FinishedShard:
    """A shard that is complete and on disk.

    Attributes:
        file: file name.
        digest: digest of the file, see `segments_digest`.
        stds: standard deviation of the noise, by widened tensor with noise.
        nonfinite: number of NaNs and infinities, by source tensor that contains any.
        overflowed: widened tensors in which scaling turned finite values into infinities.
    """

    file: str
    digest: str
    stds: dict[str, float]
    nonfinite: dict[str, int]
    overflowed: list[str]


@dataclass(frozen=True)
class Journal:
    """The finished shards of one output.

    Attributes:
        directory: directory of the shards and the journal.
        fingerprint: fingerprint of the planned output.
        shards: finished shards by file name.
        name: file name of the journal; each process of a job writes its own.
    """

    directory: Path
    fingerprint: str
    shards: dict[str, FinishedShard]
    name: str = JOURNAL

    def note(self, shard: FinishedShard) -> None:
        """Add a finished shard and save the journal.

        Raises:
            OutputError: the journal cannot be written.
        """
        self.shards[shard.file] = shard
        self.save()

    def save(self) -> None:
        """Write the journal.

        Raises:
            OutputError: the journal cannot be written.
        """
        content = {"fingerprint": self.fingerprint, "shards": [asdict(shard) for shard in self.shards.values()]}
        replace_json(self.directory / self.name, content)

    def clear(self) -> None:
        """Remove the journals of all processes once the output is complete."""
        for file in _files(self.directory):
            file.unlink(missing_ok=True)


def journal_name(rank: int) -> str:
    """Return the file name of a process's journal."""
    return JOURNAL if rank == 0 else JOURNAL.replace(".json", f"-{rank}.json")


def _files(directory: Path) -> list[Path]:
    return sorted(directory.glob(JOURNAL.replace(".json", "*.json")))


def fingerprint(*values: Any) -> str:
    """Return the SHA-256 of JSON values that define the output."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def read_journal(directory: Path) -> Journal | None:
    """Read and merge the journals of all processes that wrote to a folder; None if there is no valid journal."""
    journal: Journal | None = None
    for file in _files(directory):
        try:
            content = read_json(file)
            shards = {entry["file"]: _parse_shard(entry) for entry in content["shards"]}
            if journal is None:
                journal = Journal(directory, content["fingerprint"], shards)
            elif content["fingerprint"] == journal.fingerprint:
                journal.shards.update(shards)
        except (CheckpointError, KeyError, TypeError):
            continue
    return journal


def _parse_shard(entry: Mapping[str, Any]) -> FinishedShard:
    shard = FinishedShard(**entry)
    mappings = (shard.stds, shard.nonfinite)
    if not is_file_name(shard.file) or not all(isinstance(mapping, dict) for mapping in mappings):
        raise TypeError
    return shard


def intact_shards(journal: Journal) -> dict[str, FinishedShard]:
    """Return the shards whose files still match their digests."""
    return {name: shard for name, shard in journal.shards.items() if _is_intact(journal.directory, shard)}


def _is_intact(directory: Path, shard: FinishedShard) -> bool:
    try:
        return segments_digest(directory / shard.file) == shard.digest
    except CheckpointError:
        return False

"""What of an output is finished, noted beside it while it is written, so that a killed run can be continued."""

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
    """A shard that is complete and on the disk.

    Attributes:
        file: its name.
        digest: its hash.
        stds: the standard deviation of the noise of each of its tensors that has some.
        nonfinite: how many NaNs and infinities each of those holds, those that hold some.
        overflowed: those of its tensors in which scaling made infinities.
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
        directory: where they are.
        fingerprint: of what is being made.
        shards: those that are finished, by file.
        name: of the file; every process of a job has one of its own.
    """

    directory: Path
    fingerprint: str
    shards: dict[str, FinishedShard]
    name: str = JOURNAL

    def note(self, shard: FinishedShard) -> None:
        """Add a shard that is on the disk.

        Raises:
            OutputError: the disk refused.
        """
        self.shards[shard.file] = shard
        self.save()

    def save(self) -> None:
        """Write it.

        Raises:
            OutputError: the disk refused.
        """
        content = {"fingerprint": self.fingerprint, "shards": [asdict(done) for done in self.shards.values()]}
        replace_json(self.directory / self.name, content)

    def clear(self) -> None:
        """Remove it and those of the other processes, when the output is complete."""
        for file in _files(self.directory):
            file.unlink(missing_ok=True)


def journal_name(rank: int) -> str:
    """What the journal of a process is called."""
    return JOURNAL if rank == 0 else JOURNAL.replace(".json", f"-{rank}.json")


def _files(directory: Path) -> list[Path]:
    return sorted(directory.glob(JOURNAL.replace(".json", "*.json")))


def fingerprint(*values: Any) -> str:
    """A hash of plain values that say what is being made."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def read_journal(directory: Path) -> Journal | None:
    """The journal of a folder, of all the processes that wrote there; None if it has none that can be read."""
    found: Journal | None = None
    for file in _files(directory):
        try:
            content = read_json(file)
            shards = {shard["file"]: _finished(shard) for shard in content["shards"]}
            if found is None:
                found = Journal(directory, content["fingerprint"], shards)
            elif content["fingerprint"] == found.fingerprint:
                found.shards.update(shards)
        except (CheckpointError, KeyError, TypeError):
            continue
    return found


def _finished(noted: Mapping[str, Any]) -> FinishedShard:
    shard = FinishedShard(**noted)
    mappings = (shard.stds, shard.nonfinite)
    if not is_file_name(shard.file) or not all(isinstance(mapping, dict) for mapping in mappings):
        raise TypeError
    return shard


def intact_shards(journal: Journal) -> dict[str, FinishedShard]:
    """The shards that still are what the journal says."""
    return {name: shard for name, shard in journal.shards.items() if _is_good(journal.directory, shard)}


def _is_good(directory: Path, shard: FinishedShard) -> bool:
    try:
        return segments_digest(directory / shard.file) == shard.digest
    except CheckpointError:
        return False

"""Journals: lists of finished shards, kept with an unfinished output so that an interrupted run can be resumed."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mupscale_cli.checkpoints.digests import segments_digest
from mupscale_cli.checkpoints.json_files import is_file_name, read_json
from mupscale_cli.checkpoints.output_files import replace_json
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
        directory: directory of the shards; the journal is in its parent, so that it is not a part of the output.
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
        replace_json(self.directory.parent / self.name, content)


def journal_name(rank: int) -> str:
    """Return the file name of a process's journal."""
    return JOURNAL if rank == 0 else JOURNAL.replace(".json", f"-{rank}.json")


def journal_files(folder: Path) -> list[Path]:
    """Return the journals of all processes, the one of the first process last."""
    return sorted(folder.glob(JOURNAL.replace(".json", "*.json")), key=lambda file: (file.name == JOURNAL, file.name))


def fingerprint(*values: Any) -> str:
    """Return the SHA-256 of JSON values that define the output."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def read_journal(directory: Path) -> Journal | None:
    """Read and merge the journals of all processes that wrote shards to a directory; None if there is none.

    Raises:
        CheckpointError: a journal cannot be read or is damaged.
    """
    journals = [_read(file, directory) for file in reversed(journal_files(directory.parent))]
    if not journals:
        return None
    first = journals[0]
    shards = [journal.shards for journal in journals if journal.fingerprint == first.fingerprint]
    return Journal(directory, first.fingerprint, {name: shard for each in shards for name, shard in each.items()})


def _read(file: Path, directory: Path) -> Journal:
    content = read_json(file)
    wanted, shards = content.get("fingerprint"), content.get("shards")
    if not isinstance(wanted, str) or not isinstance(shards, list):
        raise _damaged(file)
    parsed = [_parse_shard(entry, file) for entry in shards]
    return Journal(directory, wanted, {shard.file: shard for shard in parsed}, file.name)


def _parse_shard(entry: Any, file: Path) -> FinishedShard:
    if not isinstance(entry, dict) or entry.keys() != _CHECKS.keys():
        raise _damaged(file)
    if not all(check(entry[key]) for key, check in _CHECKS.items()):
        raise _damaged(file)
    return FinishedShard(**entry)


def _damaged(file: Path) -> CheckpointError:
    return CheckpointError(
        f"`{file}` is damaged: it does not list the finished files of an output",
        hint=f"remove `{file.parent}`; the run then starts from the beginning",
    )


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_size(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf  # type: ignore[operator]


def _maps_names_to(check: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


_CHECKS: dict[str, Callable[[object], bool]] = {  # of each field of a finished shard
    "file": is_file_name,
    "digest": lambda value: isinstance(value, str),
    "stds": _maps_names_to(_is_size),
    "nonfinite": _maps_names_to(_is_count),
    "overflowed": lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
}


def intact_shards(journal: Journal) -> dict[str, FinishedShard]:
    """Return the shards whose files still match their digests."""
    return {name: shard for name, shard in journal.shards.items() if _is_intact(journal.directory, shard)}


def _is_intact(directory: Path, shard: FinishedShard) -> bool:
    file = directory / shard.file
    try:
        return file.is_file() and segments_digest(file) == shard.digest
    except CheckpointError:
        return False

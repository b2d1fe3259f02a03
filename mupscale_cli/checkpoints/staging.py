"""Staging: an output is written to a hidden folder beside its final name, and published when it is complete.

The folder `.NAME.partial-…` is locked until the last part of the output has its name and nothing of the previous one is
needed. It contains:

    .lock                       held by the run that writes
    .mupscale-journal.json      the finished shards; shows that the folder is ours and not yet published
    .mupscale-publication.json  the parts of the output, while they are renamed
    output/                     the output
    replaced/                   parts of the previous output, while they are renamed

If a run dies, the next one for the same output restores or completes what it was publishing, removes what is of no
use, and says so. A folder without these marks is never touched.
"""

from __future__ import annotations

import glob
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from mupscale_cli.checkpoints.journal import JOURNAL, Journal, journal_files, read_journal
from mupscale_cli.checkpoints.lock import release, try_lock, unlock
from mupscale_cli.checkpoints.output_files import output_errors
from mupscale_cli.checkpoints.publication import (
    PUBLICATION,
    Publication,
    has_replaced,
    publication_lock,
    read_publication,
    remove_lock,
)
from mupscale_cli.errors import CheckpointError, OutputError
from mupscale_cli.files import flush_tree

_LOCK = ".lock"
_CONTENT = "output"
_MARKS = (_LOCK, JOURNAL, PUBLICATION)  # and temporary files with these names
_TOKEN_BYTES = 4
_ANY_TOKEN = "[0-9a-f]" * (2 * _TOKEN_BYTES)


@dataclass(frozen=True)
class Staging:
    """The locked folder of an output that is being written.

    Attributes:
        output: final path of the output: a folder, or the weight file.
        folder: the hidden folder beside it.
        journal: the finished shards.
        lock: the lock of the folder.
    """

    output: Path
    folder: Path
    journal: Journal
    lock: FileLock

    @property
    def content(self) -> Path:
        """The folder to write the output to."""
        return self.folder / _CONTENT

    def clear(self) -> None:
        """Remove everything from the output except the finished shards.

        Raises:
            OutputError: the system cannot remove it.
        """
        with output_errors(self.output):
            for path in self.content.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif path.name not in self.journal.shards:
                    path.unlink()

    def publish(self, parts: Mapping[str, str | None], *, overwrite: bool) -> None:
        """Flush the output and give it its final names; if that fails, the previous output stays.

        Args:
            parts: path within `content` of each part, by its final name: first the weights or, as the empty path, the
                whole folder, then companions. None removes a companion of the previous output.
            overwrite: whether the parts may replace existing files and folders.

        Raises:
            OutputExistsError: an output exists and may not be replaced.
            OutputError: the system cannot flush or rename a part, or cannot restore the previous output.
        """
        with output_errors(self.output):
            flush_tree(self.content)
            staged = {name: None if path is None else f"{_CONTENT}/{path}".rstrip("/") for name, path in parts.items()}
            with publication_lock(self.output):
                Publication.of(self.folder, staged).publish(overwrite=overwrite)
                with suppress(OSError):  # the next run then finds a complete publication
                    _mark_published(self.folder)
            _remove_superseded(self)

    def discard(self) -> None:
        """Remove the folder as far as the system permits; the next run for this output removes the rest."""
        _remove(self.folder, self.lock)


@contextmanager
def stage(
    output: Path, fingerprint: str, *, resume: bool, keep: Callable[[Staging, BaseException], bool]
) -> Iterator[Staging]:
    """Lock a folder for an output, and remove it at the end.

    Args:
        output: final path of the output.
        fingerprint: fingerprint of the planned output.
        resume: continue in the folder of a run that died and wrote the same output, if there is one.
        keep: decides from an error whether the folder is worth keeping for `resume`.

    Raises:
        OutputError: another run is writing this output, or the system cannot create the folder.
        CheckpointError: the journal of a run to continue is damaged.
    """
    with output_errors(output):
        staging = (_resumed(output, fingerprint) if resume else None) or _created(output, fingerprint)
    try:
        yield staging
    except BaseException as error:
        if isinstance(error, OutputError) and error.hint is None:
            exists = os.path.lexists(output)
            error.hint = f"the existing `{output}` is unchanged" if exists else f"no `{output}` was created"
        if keep(staging, error) or (staging.folder / PUBLICATION).exists():  # parts of the previous output are in it
            unlock(staging.lock)
        else:
            staging.discard()
        raise
    staging.discard()


def _created(output: Path, fingerprint: str) -> Staging:
    """Create and lock a folder; try again if another run takes the empty folder for an abandoned one."""
    output.parent.mkdir(parents=True, exist_ok=True)
    while True:
        folder = output.parent / f".{output.name}.partial-{secrets.token_hex(_TOKEN_BYTES)}"
        folder.mkdir()
        with suppress(FileNotFoundError):
            lock = try_lock(folder / _LOCK)
            if lock is not None and (folder / _LOCK).exists():
                break
    journal = Journal((folder / _CONTENT).absolute(), fingerprint, {})  # absolute: processes may have other folders
    staging = Staging(output, folder, journal, lock)
    try:
        journal.save()
        staging.content.mkdir()
    except BaseException:
        staging.discard()
        raise
    return staging


def _resumed(output: Path, fingerprint: str) -> Staging | None:
    """Lock the folder of a run that died and wrote the same output; return None if there is none."""
    for folder in _folders(output):
        if (folder / PUBLICATION).exists():  # another run has just published it
            continue
        lock = try_lock(folder / _LOCK)
        if lock is None:
            raise OutputError(
                f"another run is writing `{output}`", hint="wait for it to finish, or stop it and try again"
            )
        try:
            journal = read_journal((folder / _CONTENT).absolute())
            if journal is not None and journal.fingerprint == fingerprint:
                (folder / _CONTENT).mkdir(exist_ok=True)
                return Staging(output, folder, journal, lock)
        except BaseException:
            unlock(lock)
            raise
        unlock(lock)
    return None


def recover(output: Path, note: Callable[[str], None]) -> None:
    """Restore or complete what runs that died were publishing, and remove what they left and nobody can use.

    Args:
        output: final path of an output.
        note: told what was found and done.

    Raises:
        OutputError: the previous output cannot be restored.
        CheckpointError: the record of a publication is damaged.
    """
    for folder in _folders(output):
        with _locked(folder) as lock:
            if lock is not None and (text := _recover(output, folder, lock)):
                note(text)
    with suppress(OSError):  # a lock of another user
        remove_lock(output)


def _recover(output: Path, folder: Path, lock: FileLock) -> str | None:
    """Recover one folder; return what was done, or None if nothing was."""
    publication = read_publication(folder)
    if publication is not None and (folder / JOURNAL).exists():
        with output_errors(output), publication_lock(output):
            if not publication.is_complete:
                publication.restore()
                return f"a run was killed while it published `{output}`; the previous state is restored"
            _mark_published(folder)
    if publication is not None:
        _remove(folder, lock)
        return f"a run was killed after it had published `{output}`; removed its folder `{folder}`"
    if _is_useless(folder):
        _remove(folder, lock)
        return f"removed `{folder}` of a run that was killed before it finished a file"
    return None


def _is_useless(folder: Path) -> bool:
    """Return whether a run made a folder and finished nothing in it."""
    if not (folder / JOURNAL).exists():
        return True  # killed before it wrote the journal
    try:
        journal = read_journal(folder / _CONTENT)
    except CheckpointError:
        return False
    return journal is not None and not journal.shards


def _remove_superseded(staging: Staging) -> None:
    """Remove what other runs that died left of an output that has now been published."""
    for folder in _folders(staging.output):
        if folder == staging.folder or (folder / PUBLICATION).exists():
            continue
        with _locked(folder) as lock, suppress(CheckpointError):
            journal = None if lock is None else read_journal(folder / _CONTENT)
            if lock is not None and journal is not None and journal.fingerprint == staging.journal.fingerprint:
                _remove(folder, lock)


def set_aside(output: Path) -> Path | None:
    """Return the folder of a killed run that holds parts of the output; None if there is none."""
    return next((folder for folder in _folders(output) if has_replaced(folder)), None)


def unfinished(staging: Staging) -> Iterator[tuple[Path, int, str | None]]:
    """Yield the folder of every other run that died, the size of its files in bytes, and its fingerprint.

    The fingerprint is None if the journal is damaged. Folders that cannot be read are skipped.
    """
    for folder in _folders(staging.output):
        if folder == staging.folder:
            continue
        with _locked(folder) as lock:
            if lock is None:
                continue
            files = [file for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
            try:
                journal = read_journal(folder / _CONTENT)
            except CheckpointError:
                journal = None
            yield folder, sum(file.stat().st_size for file in files), journal.fingerprint if journal else None


def _folders(output: Path) -> list[Path]:
    """Return the folders of this output from all runs: those with a mark of ours, and empty ones."""
    named = output.parent.glob(f".{glob.escape(output.name)}.partial-{_ANY_TOKEN}")
    return sorted(folder for folder in named if folder.is_dir() and not folder.is_symlink() and _is_ours(folder))


def _is_ours(folder: Path) -> bool:
    try:
        names = {path.name for path in folder.iterdir()}
    except OSError:  # belongs to another user, or was just removed
        return False
    return bool(names & {JOURNAL, PUBLICATION}) or all(any(mark in name for mark in _MARKS) for name in names)


@contextmanager
def _locked(folder: Path) -> Iterator[FileLock | None]:
    """Hold the lock of a folder; None if its run is alive, or it is another user's or was just removed."""
    try:
        lock = try_lock(folder / _LOCK)
    except OSError:
        lock = None
    try:
        yield lock
    finally:
        if lock is not None:
            unlock(lock)


def _mark_published(folder: Path) -> None:
    """Remove the journals: from now on, the record of the publication marks the folder as one to remove."""
    for file in journal_files(folder):
        file.unlink()


def _remove(folder: Path, lock: FileLock) -> None:
    """Remove a locked folder, the marks last, so that the next run recognizes what this one cannot remove."""
    with suppress(OSError):
        marks = [*journal_files(folder), folder / PUBLICATION]
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path not in marks and path.name != _LOCK:
                path.unlink()
        for mark in marks:
            mark.unlink(missing_ok=True)
        release(lock)
        folder.rmdir()
    unlock(lock)

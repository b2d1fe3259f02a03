"""Publication: a complete output appears under its final names as a whole, or the previous output stays.

An output has one part, its folder, or several: a weight file and the companions beside it. Before the first rename, a
record of all parts is written next to the staged output. If the process dies, that record tells the next run which
renames were done, so it can finish the publication or undo it.

A single part is exchanged with its predecessor in one step, where the system can do that. Several parts cannot appear
in one step, so the old ones are set aside first, the weights before their companions, and the new ones appear with the
weights last. New weights are therefore never seen with an old config, and an interrupted publication leaves no weights
under the final name rather than wrong ones.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from mupscale_cli.checkpoints.json_files import is_file_name, is_inner_path, read_json
from mupscale_cli.checkpoints.lock import release, try_lock
from mupscale_cli.checkpoints.output_files import replace_json
from mupscale_cli.checkpoints.renaming import exchange, rename_new
from mupscale_cli.errors import CheckpointError, OutputError, OutputExistsError
from mupscale_cli.files import flush

PUBLICATION = ".mupscale-publication.json"
_REPLACED = "replaced"
_NOTHING = "nothing"  # never exists
_LOCK_SECONDS = 60  # renaming takes milliseconds


@dataclass(frozen=True, slots=True)
class Part:
    """A path that a publication creates, replaces or removes.

    Attributes:
        name: final name, beside the folder of the staged output.
        staged: path in that folder; None to remove a companion of the previous output.
        inode: inode number of the staged path, which tells it from its predecessor wherever either is; 0 if unknown.
    """

    name: str
    staged: str | None
    inode: int = 0


@dataclass(frozen=True)
class Publication:
    """The parts of an output and where they are.

    Attributes:
        folder: folder of the staged output, beside the final names.
        parts: the weights or the whole folder, then companions.
    """

    folder: Path
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, folder: Path, parts: Mapping[str, str | None]) -> Publication:
        """Return the publication of staged paths, or None to remove a companion, by their final names."""
        named = ((name, staged, os.lstat(folder / staged).st_ino if staged else 0) for name, staged in parts.items())
        return cls(folder, tuple(Part(*each) for each in named))

    def publish(self, *, overwrite: bool) -> None:
        """Give all parts their final names. If that fails, restore the previous output.

        Raises:
            OutputExistsError: a final name is taken and may not be replaced.
            OutputError: the system cannot rename or flush a part, or cannot restore the previous output.
        """
        for part in self.parts:
            if not overwrite and _exists(self._final(part)):
                raise output_exists_error(self._final(part))
        try:
            (self.folder / _REPLACED).mkdir(exist_ok=True)
            replace_json(self.folder / PUBLICATION, {"parts": [asdict(part) for part in self.parts]})
            flush(self.folder)
            if not overwrite:
                self._appear()
            elif not self._exchange():
                self._set_aside()
                self._appear()
            flush(self.folder.parent)
        except BaseException as error:
            self.restore()
            if isinstance(error, FileExistsError):
                raise output_exists_error(Path(error.filename2 or error.filename)) from error
            raise

    def _exchange(self) -> bool:
        """Exchange a single part with its predecessor in one step; return False where this is impossible."""
        if len(self.parts) > 1 or not _exists(self._final(self.parts[0])):
            return False
        return exchange(self._staged(self.parts[0]), self._final(self.parts[0]))

    def _set_aside(self) -> None:
        """Move the old parts away, weights first."""
        for part in self.parts:
            if _exists(self._final(part)):
                self._final(part).rename(self._replaced(part))

    def _appear(self) -> None:
        """Give the new parts their final names, weights last."""
        for part in reversed(self.parts):
            if part.staged is not None:
                rename_new(self._staged(part), self._final(part))

    @property
    def is_complete(self) -> bool:
        """Whether every new part has been given its final name."""
        return all(not _exists(self._staged(part)) or self._is_published(part) for part in self.parts)

    def restore(self) -> None:
        """Move every new part back to the staged output and every old one to its name, and drop the record.

        Raises:
            OutputError: something else has taken a name, or the system cannot rename a part.
        """
        with self._restoring():
            for part in self.parts:
                if self._is_published(part):
                    if _exists(self._staged(part)):
                        exchange(self._staged(part), self._final(part))
                    else:
                        rename_new(self._final(part), self._staged(part))
            for part in reversed(self.parts):
                if _exists(self._replaced(part)):
                    rename_new(self._replaced(part), self._final(part))
            flush(self.folder.parent)
            if (self.folder / _REPLACED).exists():
                (self.folder / _REPLACED).rmdir()
            (self.folder / PUBLICATION).unlink(missing_ok=True)

    @contextmanager
    def _restoring(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise OutputError(
                f"cannot restore `{self._final(self.parts[0])}`: `{error.filename2 or error.filename}`: {reason}",
                hint=f"its files are in `{self.folder}`; the next run for this output tries again",
            ) from error

    def _is_published(self, part: Part) -> bool:
        """Return whether the new part is at its final name."""
        return _exists(self._final(part)) and os.lstat(self._final(part)).st_ino == part.inode

    def _final(self, part: Part) -> Path:
        return self.folder.parent / part.name

    def _staged(self, part: Part) -> Path:
        return self.folder / (part.staged or _NOTHING)

    def _replaced(self, part: Part) -> Path:
        return self.folder / _REPLACED / part.name


def read_publication(folder: Path) -> Publication | None:
    """Read the record of a publication that has begun; None if there is none.

    Raises:
        CheckpointError: the record cannot be read or is damaged.
    """
    file = folder / PUBLICATION
    if not _exists(file):
        return None
    parts = read_json(file).get("parts")
    if not (isinstance(parts, list) and parts and all(map(_is_part, parts))):
        raise CheckpointError(f"`{file}` is damaged: it does not list the parts of an output")
    return Publication(folder, tuple(Part(**part) for part in parts))


def has_replaced(folder: Path) -> bool:
    """Return whether a publication has begun in a folder and set parts of the previous output aside there."""
    return (folder / PUBLICATION).exists() and any((folder / _REPLACED).glob("*"))


def _is_part(entry: object) -> bool:
    """Return whether a JSON value describes a part; its paths do not leave their folders."""
    if not isinstance(entry, dict) or entry.keys() != {"name", "staged", "inode"}:
        return False
    name, staged, inode = entry["name"], entry["staged"], entry["inode"]
    is_inside = staged is None or (is_inner_path(staged))
    return is_file_name(name) and is_inside and type(inode) is int


@contextmanager
def publication_lock(output: Path) -> Iterator[None]:
    """Hold the lock under which parts of an output are renamed, so that no two runs mix theirs.

    Raises:
        OutputError: another run holds it and does not proceed.
    """
    lock = try_lock(_lock_file(output), _LOCK_SECONDS)
    if lock is None:
        raise OutputError(f"another run is publishing `{output}`", hint="stop it and try again")
    try:
        yield
    finally:
        release(lock)


def remove_lock(output: Path) -> None:
    """Remove the empty file of the publication lock that a killed run left, if there is one."""
    if _lock_file(output).exists() and (lock := try_lock(_lock_file(output))) is not None:
        release(lock)


def _lock_file(output: Path) -> Path:
    return output.with_name(f".{output.name}.publishing")


def _exists(path: Path) -> bool:
    """Return whether there is something at a path; unlike `os.path.lexists`, do not take an error for an answer."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def output_exists_error(file: Path, *, can_replace: bool = True) -> OutputExistsError:
    """Return the error for an output path that exists; `can_replace` tells whether `--overwrite` would replace it."""
    replace = "replace it with `--overwrite`" if can_replace else "remove it yourself"
    return OutputExistsError(f"`{file}` already exists", hint=f"choose another name with `-o`, or {replace}")

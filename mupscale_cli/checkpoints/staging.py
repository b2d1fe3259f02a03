"""Output that appears under its final name only when it is complete and on the disk."""

from __future__ import annotations

import glob
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from mupscale_cli.checkpoints.lock import release, try_lock
from mupscale_cli.checkpoints.reading import RECORD
from mupscale_cli.errors import OutputError, OutputExistsError
from mupscale_cli.text import bytes_text

LOCK = ".lock"  # in the temporary directory
_DISK_SLACK = 64 << 20  # headers, config, tokenizer


class Staging:
    """A directory beside the output under a temporary name; `publish` renames what is in it.

    Used as a context manager: whatever happens before `publish`, the final name is untouched, and the temporary
    directory is removed unless `keep` says that it is worth something. A kill leaves it, under a name that says
    what it is, and for `resume` to find.

    Attributes:
        output: the final name.
        directory: the temporary one.
        keep: whether to leave it when an error passes, so that it can be resumed.
    """

    def __init__(self, output: Path, *, overwrite: bool) -> None:
        self.output = output
        self.overwrite = overwrite
        self.directory = output.parent / f".{output.name}.partial-{secrets.token_hex(4)}"
        self.keep: Callable[[BaseException], bool] = lambda _error: False
        self._lock: FileLock | None = None

    def __enter__(self) -> Staging:
        with output_errors(self.output):
            if self._lock is None:
                self.output.parent.mkdir(parents=True, exist_ok=True)
                self.directory.mkdir()
                self._lock = try_lock(self.directory / LOCK)
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self._release()
        if error is None or not self.keep(error):
            shutil.rmtree(self.directory, ignore_errors=True)

    def resume(self, is_wanted: Callable[[Path], bool]) -> bool:
        """Go on in what a killed run left, if it left something; before the context is entered.

        Args:
            is_wanted: whether a folder holds what is to be made here.

        Raises:
            OutputError: the other run is still at work.
        """
        with output_errors(self.output):
            for folder in self._folders():
                lock = try_lock(folder / LOCK)
                if lock is None:
                    raise OutputError(
                        f"another run is writing `{self.output}`", hint="wait for it, or stop it and try again"
                    )
                if is_wanted(folder):
                    self.directory, self._lock = folder, lock
                    return True
                release(lock)
        return False

    def abandoned(self) -> dict[Path, int]:
        """What killed runs left that nobody goes on with, and how many bytes; but for what cannot be looked into."""
        found = {}
        for folder in self._folders():
            if folder == self.directory:
                continue
            try:
                lock = try_lock(folder / LOCK)
                if lock is not None:
                    release(lock)
                    found[folder] = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
            except OSError:  # another user's, or just removed: no reason to stop
                continue
        return found

    def _folders(self) -> list[Path]:
        """The temporary directories of this output, of whichever run."""
        folders = sorted(self.output.parent.glob(f".{glob.escape(self.output.name)}.partial-*"))
        return [folder for folder in folders if not folder.is_symlink()]  # no run makes a link

    def clear(self, *kept: str) -> None:
        """Remove everything but some files."""
        with output_errors(self.output):
            for path in self.directory.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.name not in (*kept, LOCK):
                    path.unlink()

    def _release(self) -> None:
        if self._lock is not None:
            release(self._lock)

    def publish_directory(self) -> None:
        """Give the staged directory its final name; an existing one is replaced if that was asked."""
        with output_errors(self.output):
            self._release()
            for file in self.directory.iterdir():
                _sync(file)
            _sync(self.directory)
            replaced = self.directory.with_name(self.directory.name.replace(".partial-", ".replaced-"))
            if self.output.exists():
                if not self.overwrite:
                    raise output_exists(self.output)
                self.output.rename(replaced)
            self.directory.rename(self.output)
            _sync(self.output.parent)
            shutil.rmtree(replaced, ignore_errors=True)

    def publish_file(self, staged: str, beside: Mapping[str, Path]) -> None:
        """Give a staged file its final name, after those that go beside it."""
        with output_errors(self.output):
            self._release()
            for file in self.directory.iterdir():
                _sync(file)
            for file in (self.output, *beside.values()):
                if file.exists() and not self.overwrite:
                    raise output_exists(file)
            for name, final in beside.items():
                (self.directory / name).replace(final)
            (self.directory / staged).replace(self.output)
            _sync(self.output.parent)


def output_exists(file: Path) -> OutputExistsError:
    """What is told of something that stands where an output is to be."""
    return OutputExistsError(f"`{file}` exists", hint="choose another name with `-o`, or replace it with `--overwrite`")


def check_output(output: Path, source: Path, *, needed_bytes: int, overwrite: bool) -> None:
    """Refuse, before anything is read, an output that could not be published.

    Raises:
        OutputError: it exists, lies in the source or around it, is no checkpoint that could be
            replaced, or the disk is too small.
    """
    real, real_source = _resolved(output), _resolved(source)
    if real == real_source:
        raise OutputError(f"output and input are both `{source}`", hint="choose another name with `-o`")
    if real_source.is_dir() and real.is_relative_to(real_source):
        raise OutputError(
            f"the output `{output}` is inside of the input `{source}`", hint="choose a name outside of it with `-o`"
        )
    if real_source.is_relative_to(real):
        raise OutputError(
            f"the input `{source}` is inside of the output `{output}`", hint="choose another name with `-o`"
        )
    if output.exists() or output.is_symlink():
        if not overwrite:
            raise output_exists(output)
        _refuse_replacing(output, source)
    existing = next(parent for parent in _resolved(output).parents if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise OutputError(
            f"`{existing}` is not a directory that can be written to", hint="choose another place with `-o`"
        )
    free = shutil.disk_usage(existing).free
    if needed_bytes + _DISK_SLACK > free:
        raise OutputError(
            f"not enough disk: the output takes {bytes_text(needed_bytes)}, `{existing}` has {bytes_text(free)} free",
            hint="free some space, or write to another disk with `-o`",
        )


def _refuse_replacing(output: Path, source: Path) -> None:
    if output.is_symlink() or output.is_dir() == source.is_file():
        kind = "file" if source.is_file() else "directory"
        raise OutputError(f"`{output}` is not a {kind}, so `--overwrite` does not replace it")
    if output.is_dir() and any(output.iterdir()) and not (output / RECORD).is_file():
        raise OutputError(
            f"`{output}` was not written by mupscale (it holds no {RECORD}), so `--overwrite` does not replace it",
            hint="remove it yourself, or choose another name with `-o`",
        )


def _resolved(path: Path) -> Path:
    return Path(os.path.realpath(path))


def write_json(file: Path, content: Any) -> None:
    """Write a new JSON file and flush it to the disk."""
    with output_errors(file), open(file, "x", encoding="utf-8") as stream:
        json.dump(content, stream, indent=2, ensure_ascii=False)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())


def replace_json(file: Path, content: Any) -> None:
    """Replace a JSON file in one step."""
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        write_json(temporary, content)
        with output_errors(file):
            temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def copy_file(source: Path, directory: Path) -> None:
    """Copy a file's content under its own name; what a symbolic link points to, not the link."""
    with output_errors(directory / source.name):
        shutil.copyfile(source, directory / source.name)


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses into a message for the user."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write `{path}`: {error.strerror or error}", hint="nothing was left under the final name"
        ) from error


def _sync(path: Path) -> None:
    """Flush a file or directory to the disk, where the system can."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return  # Windows opens no directories
    try:
        os.fsync(handle)
    except OSError:
        pass  # some file systems do not flush directories
    finally:
        os.close(handle)

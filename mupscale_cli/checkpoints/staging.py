"""Staging: outputs appear under their final name only when they are complete and on disk."""

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
from mupscale_cli.files import flush, flush_tree
from mupscale_cli.text import bytes_text

LOCK = ".lock"  # in the temporary directory
_DISK_SLACK = 64 << 20  # headers, config, tokenizer


class Staging:
    """A temporary directory next to the output; publishing renames it, or a file in it, to the final name.

    A context manager. Until publishing, the final name stays untouched. If the context fails, the temporary directory
    is removed unless `keep` returns true for the error. If the process is killed, the directory stays under a
    recognizable name, and `resume` finds it.

    Attributes:
        output: final path.
        directory: temporary directory.
        keep: decides from the error whether the directory is worth keeping for `--resume`.
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
        """Continue in the directory of an earlier run, if there is one. Call this before entering the context.

        Args:
            is_wanted: whether a directory contains the same output.

        Returns:
            Whether there is a directory to continue.

        Raises:
            OutputError: another run is still writing the output.
        """
        with output_errors(self.output):
            for folder in self._folders():
                lock = try_lock(folder / LOCK)
                if lock is None:
                    raise OutputError(
                        f"another run is writing `{self.output}`",
                        hint="wait for it to finish, or stop it and try again",
                    )
                if is_wanted(folder):
                    self.directory, self._lock = folder, lock
                    return True
                release(lock)
        return False

    def abandoned(self) -> dict[Path, int]:
        """Return unfinished outputs of earlier runs and their sizes in bytes; unreadable folders are skipped."""
        sizes = {}
        for folder in self._folders():
            if folder == self.directory:
                continue
            try:
                lock = try_lock(folder / LOCK)
                if lock is not None:
                    release(lock)
                    sizes[folder] = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
            except OSError:  # belongs to another user, or was just removed
                continue
        return sizes

    def _folders(self) -> list[Path]:
        """Return the temporary directories of this output, from all runs."""
        folders = sorted(self.output.parent.glob(f".{glob.escape(self.output.name)}.partial-*"))
        return [folder for folder in folders if not folder.is_symlink()]  # runs never create links

    def clear(self, *keep: str) -> None:
        """Remove everything from the directory except the named files and the lock."""
        with output_errors(self.output):
            for path in self.directory.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.name not in (*keep, LOCK):
                    path.unlink()

    def _release(self) -> None:
        if self._lock is not None:
            release(self._lock)

    def publish_directory(self) -> None:
        """Rename the staged directory to its final name, replacing an existing one with `overwrite`.

        Raises:
            OutputExistsError: the output exists and may not be overwritten.
            OutputError: the system cannot flush or rename it.
        """
        with output_errors(self.output):
            self._release()
            flush_tree(self.directory)
            replaced = self.directory.with_name(self.directory.name.replace(".partial-", ".replaced-"))
            if self.output.exists():
                if not self.overwrite:
                    raise output_exists_error(self.output)
                self.output.rename(replaced)
            self.directory.rename(self.output)
            flush(self.output.parent)
            shutil.rmtree(replaced, ignore_errors=True)

    def publish_file(self, staged: str, companions: Mapping[str, Path]) -> None:
        """Move a staged file to its final name, after its companion files.

        Args:
            staged: name of the file in the staging directory.
            companions: final paths of further files, by name in the staging directory.

        Raises:
            OutputExistsError: a file exists and may not be overwritten.
            OutputError: the system cannot flush or move a file.
        """
        with output_errors(self.output):
            self._release()
            flush_tree(self.directory)
            for file in (self.output, *companions.values()):
                if file.exists() and not self.overwrite:
                    raise output_exists_error(file)
            for name, final in companions.items():
                (self.directory / name).replace(final)
            (self.directory / staged).replace(self.output)
            flush(self.output.parent)


def output_exists_error(file: Path) -> OutputExistsError:
    """Return the error for an output path that exists."""
    return OutputExistsError(
        f"`{file}` already exists", hint="choose another name with `-o`, or replace it with `--overwrite`"
    )


def check_output(output: Path, source: Path, *, needed_bytes: int, overwrite: bool) -> None:
    """Check that an output can be published, before any data is read.

    Args:
        output: final path.
        source: path of the input checkpoint.
        needed_bytes: size of the output in bytes.
        overwrite: whether an existing checkpoint may be replaced.

    Raises:
        OutputError: the output exists, overlaps the source, is not a checkpoint that may be replaced, cannot be
            written, or does not fit on the disk.
    """
    real, real_source = _resolved(output), _resolved(source)
    if real == real_source:
        raise OutputError(f"output and input are both `{source}`", hint="choose another name with `-o`")
    if real_source.is_dir() and real.is_relative_to(real_source):
        raise OutputError(
            f"the output `{output}` is inside the input `{source}`", hint="choose a path outside it with `-o`"
        )
    if real_source.is_relative_to(real):
        raise OutputError(f"the input `{source}` is inside the output `{output}`", hint="choose another path with `-o`")
    if output.exists() or output.is_symlink():
        if not overwrite:
            raise output_exists_error(output)
        _refuse_replacing(output, source)
    existing = next(parent for parent in _resolved(output).parents if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise OutputError(f"`{existing}` is not a writable directory", hint="choose another path with `-o`")
    free = shutil.disk_usage(existing).free
    if needed_bytes + _DISK_SLACK > free:
        raise OutputError(
            f"not enough disk space: the output takes {bytes_text(needed_bytes)}, "
            f"`{existing}` has {bytes_text(free)} free",
            hint="free some space, or write to another disk with `-o`",
        )


def _refuse_replacing(output: Path, source: Path) -> None:
    if output.is_symlink() or output.is_dir() == source.is_file():
        kind = "file" if source.is_file() else "directory"
        raise OutputError(f"`{output}` is not a {kind}, so `--overwrite` does not replace it")
    if output.is_dir() and any(output.iterdir()) and not (output / RECORD).is_file():
        raise OutputError(
            f"`{output}` was not written by mupscale (it has no {RECORD}), so `--overwrite` does not replace it",
            hint="remove it yourself, or choose another name with `-o`",
        )


def _resolved(path: Path) -> Path:
    return Path(os.path.realpath(path))


def write_json(file: Path, content: Any) -> None:
    """Write a new JSON file and flush it to disk.

    Raises:
        OutputError: the file exists or cannot be written.
    """
    with output_errors(file), open(file, "x", encoding="utf-8") as stream:
        json.dump(content, stream, indent=2, ensure_ascii=False)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())


def replace_json(file: Path, content: Any) -> None:
    """Replace a JSON file atomically.

    Raises:
        OutputError: the file cannot be written.
    """
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        write_json(temporary, content)
        with output_errors(file):
            temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def copy_file(source: Path, directory: Path) -> None:
    """Copy a file into a directory under the same name, following symbolic links.

    Raises:
        OutputError: the file cannot be read or the copy cannot be written.
    """
    with output_errors(directory / source.name):
        shutil.copyfile(source, directory / source.name)


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` inside the context into `OutputError`.

    Args:
        path: output path, for the message.

    Raises:
        OutputError: the operating system reported an error.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write `{path}`: {error.strerror or error}", hint="no output was created under the final name"
        ) from error

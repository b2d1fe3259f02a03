"""The paths that an output will take: checks before anything is read or written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

from mupscale_cli.checkpoints.fates import RECORD
from mupscale_cli.checkpoints.header import METADATA_KEY, read_header
from mupscale_cli.checkpoints.json_files import parse_object, read_json
from mupscale_cli.checkpoints.publication import output_exists_error
from mupscale_cli.errors import CheckpointError, MupscaleError, OutputError
from mupscale_cli.text import bytes_text

_DISK_SLACK = 64 << 20  # headers, config, tokenizer
_MOST_SHOWN = 5  # names in a message
_REMOVE = "remove it yourself, or choose another name with `-o`"


def check_output(
    output: Path,
    source: Path,
    *,
    needed_bytes: int | None,
    overwrite: bool,
    companions: Collection[Path] = (),
    replaced: Mapping[Path, bool] = MappingProxyType({}),
    inputs: Iterable[Path] = (),
) -> None:
    """Check that an output can be published, before any data is read.

    Args:
        output: final path.
        source: path of the input checkpoint.
        needed_bytes: size of the output in bytes; None if it has been written.
        overwrite: whether an existing checkpoint may be replaced.
        companions: final paths of the files beside a single weight file.
        replaced: companions of an existing weight file, by its record, and whether each is a directory.
        inputs: further files that the run reads.

    Raises:
        OutputError: the output exists, overlaps an input, is not a checkpoint that may be replaced, cannot be written,
            or does not fit on the disk.
    """
    _refuse_overlap(output, source)
    _refuse_inputs((output, *companions, *replaced), inputs)
    taken = [path for path in (output, *companions) if os.path.lexists(path)]
    try:
        _require_ours(taken, output, {output: not source.is_file(), **replaced})
    except MupscaleError as error:
        if taken and not overwrite:
            raise output_exists_error(taken[0], can_replace=False) from error
        raise
    if taken and not overwrite:
        raise output_exists_error(taken[0])
    existing = next(parent for parent in _resolved(output).parents if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise OutputError(f"`{existing}` is not a writable directory", hint="choose another path with `-o`")
    free = shutil.disk_usage(existing).free
    if needed_bytes is not None and needed_bytes + _DISK_SLACK > free:
        raise OutputError(
            f"not enough disk space: the output takes {bytes_text(needed_bytes)}, "
            f"`{existing}` has {bytes_text(free)} free",
            hint="free some space, or write to another disk with `-o`",
        )


def _require_ours(taken: Iterable[Path], output: Path, replaced: Mapping[Path, bool]) -> None:
    """Check that existing paths are those of an output, which `--overwrite` replaces.

    Args:
        taken: the paths that the new output also has.
        output: its final path.
        replaced: all paths of the existing output, and whether each is to be a directory.
    """
    for path in taken:
        if path not in replaced:
            raise _not_ours(path, "no existing output has a record that names it")
    for path, is_directory in replaced.items():
        if os.path.lexists(path):
            _refuse_kind(path, is_directory=is_directory)
    if os.path.lexists(output):
        _require_record(output)


def _refuse_overlap(output: Path, source: Path) -> None:
    """Check that neither of input and output contains the other."""
    real, real_source = _resolved(output), _resolved(source)
    if real == real_source:
        raise OutputError(f"output and input are both `{source}`", hint="choose another name with `-o`")
    if real_source.is_dir() and real.is_relative_to(real_source):
        raise OutputError(
            f"the output `{output}` is inside the input `{source}`", hint="choose a path outside it with `-o`"
        )
    if real_source.is_relative_to(real):
        raise OutputError(f"the input `{source}` is inside the output `{output}`", hint="choose another path with `-o`")


def _refuse_inputs(targets: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Check that nothing that a run writes or replaces is one of its inputs, under this or another name."""
    named = {identity: file for file in inputs for identity in _identities(file)}
    for path in (path for target in targets for path in _tree(target)):
        known = next((named[identity] for identity in _identities(path) if identity in named), None)
        if known is not None:
            as_name = "" if known == path else f" (`{known}`)"
            raise OutputError(
                f"the output would replace `{path}`, which is an input{as_name}", hint="choose another name with `-o`"
            )


def _tree(path: Path) -> Iterator[Path]:
    """Yield a path and everything in it, without following links to folders."""
    yield path
    for folder, folders, files in os.walk(path):
        yield from (Path(folder, name) for name in (*folders, *files))


def _identities(path: Path) -> Iterator[tuple[int, int]]:
    """Yield device and inode of a path and of what it links to; nothing if it does not exist."""
    for follow_links in (False, True):
        with suppress(OSError):
            found = path.stat(follow_symlinks=follow_links)
            yield found.st_dev, found.st_ino


def _refuse_kind(path: Path, *, is_directory: bool) -> None:
    """Check that an existing path is no link, and a folder where one is expected."""
    if path.is_symlink() or path.is_dir() != is_directory:
        found = "a link" if path.is_symlink() else "a file" if is_directory else "a folder"
        kind = "a folder" if is_directory else "a file"
        raise OutputError(
            f"`{path}` is {found}, and the output is {kind}, so `--overwrite` does not replace it", hint=_REMOVE
        )


def _require_record(output: Path) -> None:
    """Check that an existing output has our record, or is an empty folder."""
    if output.is_dir() and not any(output.iterdir()):
        return
    record = existing_record(output)
    if record is None:
        raise _not_ours(output, f"it has no valid {RECORD}" if output.is_dir() else "its header has no record")
    others = _unrecorded(output, record) if output.is_dir() else []
    if others:
        shown = ", ".join(f"`{name}`" for name in others[:_MOST_SHOWN]) + (", ..." if len(others) > _MOST_SHOWN else "")
        raise OutputError(
            f"`{output}` also has files that mupscale did not write, and `--overwrite` would delete them: {shown}",
            hint="move them elsewhere, or choose another name with `-o`",
        )


def _unrecorded(folder: Path, record: Mapping[str, Any]) -> list[str]:
    """Return what is in the folder of an output but not in its record."""
    state = record.get("optimizer_state")
    of_state = ([state.get("file")], state.get("files")) if isinstance(state, dict) else ()
    parts = ([RECORD], record.get("written"), record.get("others"), *of_state)
    named = {name for part in parts if isinstance(part, (dict, list)) for name in part if isinstance(name, str)}
    inner = {parent for name in named for parent in map(str, PurePosixPath(name).parents)}

    def others(path: Path) -> Iterator[str]:
        for entry in path.iterdir():
            name = entry.relative_to(folder).as_posix()
            if name in inner and entry.is_dir() and not entry.is_symlink():
                yield from others(entry)
            elif name not in named:
                yield name

    return sorted(others(folder))


def existing_record(output: Path) -> dict[str, Any] | None:
    """Return the record of an existing output; None if it has no valid one.

    Raises:
        CheckpointError: the system cannot read the output.
    """
    try:
        if output.is_dir():
            return read_json(output / RECORD)
        beside = output.with_name(f"{output.stem}.{RECORD}")
        if beside.is_file():
            return read_json(beside)
        text = read_header(output).metadata.get(METADATA_KEY)
        return None if text is None else parse_object(text, output)
    except CheckpointError as error:
        if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError):
            raise
        return None


def _not_ours(path: Path, why: str) -> OutputError:
    return OutputError(
        f"`{path}` was not written by mupscale ({why}), so `--overwrite` does not replace it",
        hint=_REMOVE,
    )


def _resolved(path: Path) -> Path:
    return Path(os.path.realpath(path))

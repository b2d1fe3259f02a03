"""Single files of an output: each write is flushed, and its errors name the file."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mupscale_cli.errors import OutputError
from mupscale_cli.files import plain


def write_json(file: Path, content: Any) -> None:
    """Write a new JSON file and flush it to disk.

    Raises:
        OutputError: the file exists or cannot be written.
    """
    write_text(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_text(file: Path, text: str) -> None:
    """Write a new text file and flush it to disk.

    Raises:
        OutputError: the file exists or cannot be written.
    """
    with output_errors(file), open(file, "x", encoding="utf-8") as stream:
        stream.write(text)
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
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file, following symbolic links.

    Raises:
        OutputError: the file cannot be read or the copy cannot be written.
    """
    with output_errors(target), open(source, "rb", opener=plain) as narrow, open(target, "wb") as copy:
        shutil.copyfileobj(narrow, copy)


def inner_file(directory: Path, name: str) -> Path:
    """Return the path of a file to write in a directory, after making the folders within it that lead there.

    Raises:
        OutputError: a folder cannot be made.
    """
    file = directory / name
    with output_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    return file


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
        raise OutputError(f"cannot write `{path}`: {error.strerror or error}") from error

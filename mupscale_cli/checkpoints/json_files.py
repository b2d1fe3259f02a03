"""Reading a checkpoint's JSON files, and the file names in them, without trusting their content."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mupscale_cli.checkpoints.config import CONFIG
from mupscale_cli.errors import CheckpointError, is_printable
from mupscale_cli.files import SMALL_BYTES, read_errors, read_text

MAX_LIST_BYTES = 100_000_000  # an index or a record lists every tensor, like a header
_MAX_JSON_DEPTH = 64
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def is_file_name(text: object) -> bool:
    """Return whether a text is a plain file name on every system: no path, no drive, only printable characters."""
    if not isinstance(text, str) or text in ("", ".", ".."):
        return False
    return is_printable(text) and not any(character in text for character in "/\\:")


def is_inner_path(text: object) -> bool:
    """Return whether a text is the path of a file within a folder, with `/`, on every system."""
    return isinstance(text, str) and all(map(is_file_name, text.split("/")))


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: the file cannot be read, is too large, or is not a valid JSON object.
    """
    with read_errors(file):
        text = read_text(file, SMALL_BYTES if file.name.endswith(CONFIG) else MAX_LIST_BYTES)
    return parse_object(text, file)


def parse_object(text: str, file: Path) -> dict[str, Any]:
    """Parse a JSON object.

    Args:
        text: the JSON.
        file: file that contains it, for messages.

    Raises:
        CheckpointError: the text is not a JSON object, is nested too deeply, or cannot be encoded again.
    """
    try:
        value = parse_json(text)
    except ValueError as error:
        raise CheckpointError(f"`{file}` is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"`{file}` is not a JSON object")
    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise CheckpointError(f"`{file}` is not valid JSON: it contains half of a surrogate pair") from error
    return value


def parse_json(text: str) -> Any:
    """Parse JSON with a nesting limit that does not depend on Python's recursion limit.

    Raises:
        ValueError: the text is not JSON, or is nested too deeply.
    """
    too_deep = f"nested deeper than {_MAX_JSON_DEPTH} levels"
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError(too_deep) from error
    if not _is_flat(value):
        raise ValueError(too_deep)
    return value


def _is_flat(value: Any) -> bool:
    """Return whether a value is nested no deeper than the limit, so that recursive functions can process it."""
    level = [value]
    for _ in range(_MAX_JSON_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return True
    return False

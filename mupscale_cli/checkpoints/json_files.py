"""JSON files of a checkpoint, which may come from anywhere, and the file names in them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mupscale_cli.checkpoints.config import CONFIG
from mupscale_cli.errors import CheckpointError, is_printable

_MAX_JSON_BYTES = 100_000_000  # an index or a record names every tensor, as a header does
_MAX_CONFIG_BYTES = 16 << 20
_MAX_JSON_DEPTH = 64
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def is_file_name(text: object) -> bool:
    """Whether a text names a file of a folder, on any system: no path, no drive, nothing that cannot be a name."""
    if not isinstance(text, str) or text in ("", ".", ".."):
        return False
    return is_printable(text) and not any(character in text for character in "/\\:")


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: it cannot be read or is something else.
    """
    limit = _MAX_CONFIG_BYTES if file.name.endswith(CONFIG) else _MAX_JSON_BYTES
    try:
        with open(file, "rb") as stream:
            data = stream.read(limit + 1)  # what the file system says of its size need not be so
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read `{file}`: {error}") from error
    if len(data) > limit:
        raise CheckpointError(f"`{file}` is larger than {limit // 10**6} MB")
    return parse_object(text, file)


def parse_object(text: str, file: Path) -> dict[str, Any]:
    """Parse a JSON object.

    Args:
        text: the JSON.
        file: where it stands, for messages.

    Raises:
        CheckpointError: the text is something else, is nested too deep, or cannot be written again.
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
            raise CheckpointError(f"`{file}` is not valid JSON: it holds half of a surrogate pair") from error
    return value


def parse_json(text: str) -> Any:
    """Parse JSON of limited nesting: the limit is ours, whatever that of Python is.

    Raises:
        ValueError: the text is not JSON, or is nested deeper.
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
    """Whether it is nested so little that what goes through it by recursion comes back."""
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

"""Reading and writing YAML objects, the settings of some trainers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from mupscale_cli.checkpoints.output_files import write_text
from mupscale_cli.errors import CheckpointError
from mupscale_cli.files import SMALL_BYTES, read_errors, read_text


def read_yaml(file: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        CheckpointError: the file cannot be read, is too large, or is not a mapping of plain values.
    """
    with read_errors(file):
        text = read_text(file, SMALL_BYTES)
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise CheckpointError(f"`{file}` is not valid YAML of plain values: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"`{file}` is not a mapping")
    return value


def write_yaml(file: Path, content: Any) -> None:
    """Write a new YAML file and flush it to disk.

    Raises:
        OutputError: the file exists or cannot be written.
    """
    write_text(file, yaml.safe_dump(content, sort_keys=False))

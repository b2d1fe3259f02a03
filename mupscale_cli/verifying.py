"""What `mupscale verify` does, as a function: find both checkpoints, plan again, compare."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mupscale_cli.checkpoint.header import read_header
from mupscale_cli.checkpoint.source import RECORD, Checkpoint, open_checkpoint
from mupscale_cli.checkpoint.target import replace_json
from mupscale_cli.errors import CheckpointError
from mupscale_cli.plan import make_plan, resolve_factors
from mupscale_cli.record import METADATA_KEY, check_version, source_changed
from mupscale_cli.verify import Verification, VerifyOptions, verify_checkpoints
from mupscale_cli.widening import choose_recipe, find_source


def verify(
    wide: str | Path,
    narrow: str | Path | None = None,
    *,
    options: VerifyOptions | None = None,
    recipe: str | Path | None = None,
) -> Verification:
    """Check that a widened checkpoint computes the same function as its source.

    The figures are kept in the directory's mupscale.json, unless it is read-only.

    Args:
        wide: a checkpoint that mupscale wrote.
        narrow: its source; the one that its record names if not given.
        options: data type, device, own model, seed.
        recipe: name or file of the recipe; the one that the record names if not given.

    Raises:
        MupscaleError: one of them is missing or not what the record says.
    """
    target = find_source(wide).checkpoint
    record = target.record
    if record is None:
        raise CheckpointError(f"`{wide}` was not written by mupscale: it has no record of its source")
    check_version(record, target.path)
    source = find_source(narrow).checkpoint if narrow is not None else _recorded_source(target)
    if changed := source_changed(record, source):
        raise CheckpointError(f"`{changed}` of `{source.path}` is not the file that `{wide}` was widened from")
    factors = {name: axis["factor"] for name, axis in record["axes"].items()}
    chosen = choose_recipe(source, recipe or record["recipe"]["name"])
    plan = make_plan(chosen, source.specs, source.config, resolve_factors(chosen, None, factors))
    found = verify_checkpoints(source, target, plan, options or VerifyOptions())
    _note(target, {**record, "verification": found.as_record()})
    return found


def _note(target: Checkpoint, record: dict[str, Any]) -> None:
    """Keep the figures in mupscale.json, where it can be written; the header of a single file is left alone."""
    file = target.path / RECORD
    if not target.is_file and not file.is_symlink() and os.access(file, os.W_OK) and os.access(target.path, os.W_OK):
        replace_json(file, record)


def _recorded_source(target: Checkpoint) -> Checkpoint:
    where = target.record["source"]  # type: ignore[index]
    if "repo" in where:
        return find_source(f"{where['repo']}@{where['revision']}").checkpoint
    path = target.path.resolve().parent / where["path"]
    if not path.exists():
        raise CheckpointError(
            f"the source of `{target.path}` is not at `{path}`", hint="name it: `mupscale verify NARROW WIDE`"
        )
    return open_checkpoint(path)


def newest_widened(folder: Path) -> Path:
    """The checkpoint in a folder that mupscale wrote last.

    Raises:
        CheckpointError: there is none.
    """
    found = [file.parent for file in folder.glob(f"*/{RECORD}")]
    for file in folder.glob("*.safetensors"):
        try:
            if METADATA_KEY in read_header(file).metadata:
                found.append(file)
        except CheckpointError:
            continue  # a broken file is not what was asked for
    if not found:
        raise CheckpointError("there is no widened checkpoint in this folder", hint="name it: `mupscale verify WIDE`")
    return max(found, key=_written_at)


def _written_at(path: Path) -> float:
    """When the weights were written; the record is younger once it was verified again."""
    files = path.glob("*.safetensors") if path.is_dir() else (path,)
    return max((file.stat().st_mtime for file in files), default=0.0)

"""Finding both checkpoints of a widening by its record, and planning it again. Uses no torch."""

from __future__ import annotations

import glob
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mupscale_cli.architecture.loading import read_draft
from mupscale_cli.architecture.types import Recipe
from mupscale_cli.checkpoints.fates import RECORD
from mupscale_cli.checkpoints.header import METADATA_KEY, read_header
from mupscale_cli.checkpoints.reading import TORCH_SUFFIXES, Checkpoint, open_checkpoint
from mupscale_cli.errors import CheckpointError
from mupscale_cli.plan import Plan, make_plan, with_noise
from mupscale_cli.record.changes import source_changed, source_resized
from mupscale_cli.record.reading import read_record, recorded_method, recorded_request
from mupscale_cli.tasks.modules import with_modules
from mupscale_cli.tasks.planning import choose_recipe, in_kind
from mupscale_cli.tasks.reading import Reading
from mupscale_cli.tasks.source import find_source

if TYPE_CHECKING:
    from mupscale_cli.record.types import Record

_log = logging.getLogger(__name__)  # `-v` shows it
OTHER_SOURCE = "compare with the original source, which may have moved or changed, or widen again"


@dataclass(frozen=True)
class RecordedWidening:
    """A finished widening, planned again from its record.

    Attributes:
        wide: the widened checkpoint.
        narrow: its source.
        plan: the plan, with the measured size of the noise.
        record: the record of the widening.
        is_published: whether the widened checkpoint came from the Hub.
    """

    wide: Checkpoint
    narrow: Checkpoint
    plan: Plan
    record: Record
    is_published: bool = False


def replan_widening(
    wide: str | Path,
    narrow: str | Path | None = None,
    recipe: str | Path | None = None,
    *,
    with_state: bool = False,
    hashed: bool = True,
) -> RecordedWidening:
    """Find both checkpoints of a widening and plan it again.

    Args:
        wide: a checkpoint written by mupscale.
        narrow: its source. Default: the source named in its record.
        recipe: name or file of the recipe. Default: the recipe named in the record.
        with_state: also download the optimizer state of a model on the Hub.
        hashed: hash the whole source to make sure that it has not changed, instead of comparing sizes only.

    Raises:
        MupscaleError: a checkpoint is missing or differs from its record.
    """
    found = find_source(wide, with_state=with_state)
    target = found.checkpoint
    record = read_record(target, hint=_recorded_hint(target, wide, narrow))
    with_state = with_state and record["optimizer_state"] is not None
    source = (
        find_source(narrow, _recorded_reading(record), with_state=with_state).checkpoint
        if narrow is not None
        else _recorded_source(target, record, with_state=with_state)
    )
    if changed := (source_changed if hashed else source_resized)(record, source):
        raise _other_source(changed, source, wide, is_new=changed not in record["source"]["files"])
    chosen = choose_recipe(source, recipe or _recorded_recipe(target, record))
    method, perturbation = recorded_method(record)
    plan = make_plan(
        chosen,
        source.specs,
        source.config,
        recorded_request(record),
        tie=record["tie"],
        clean_names=record.get("clean_names", False),
        method=method,
        perturbation=perturbation,
        side_files=source.read_side_files(chosen.side_files),
    )
    plan = with_modules(in_kind(with_noise(plan, record["noise"]), source), source)
    return RecordedWidening(target, source, plan, record, found.hub is not None)


def _recorded_hint(target: Checkpoint, wide: str | Path, narrow: str | Path | None) -> str | None:
    """Say what was meant if the checkpoint that should be the wide one has no record."""
    if target.record is not None or narrow is None:
        return None
    is_swapped = find_source(narrow, headers_only=True).checkpoint.record is not None
    return f"the source comes first: `{narrow}` was widened, so put it after `{wide}`" if is_swapped else None


def _other_source(changed: str, source: Checkpoint, wide: str | Path, *, is_new: bool) -> CheckpointError:
    if is_new:
        return CheckpointError(
            f"`{changed}` of `{source.path}` was not there when `{wide}` was widened",
            hint=f"move `{changed}` out of the folder; or widen again if it belongs to the model",
        )
    return CheckpointError(
        f"`{changed}` of `{source.path}` is not the file that `{wide}` was widened from", hint=OTHER_SOURCE
    )


def _recorded_recipe(target: Checkpoint, record: Record) -> str | Path | Recipe:
    """Return the recipe if it was drafted, or else its name or its file."""
    if (text := record["recipe"].get("text")) is not None:
        return read_draft(text, record["recipe"]["name"])
    file = record["recipe"].get("file")
    return target.path.resolve().parent / file if file else record["recipe"]["name"]


def _recorded_reading(record: Record) -> Reading:
    """Return what the user said about the source."""
    source = record["source"]
    return Reading(source.get("config"), **source.get("form", {}))


def _recorded_source(target: Checkpoint, record: Record, *, with_state: bool) -> Checkpoint:
    where, reading = record["source"], _recorded_reading(record)
    if "repo" in where:
        return find_source(f"{where['repo']}@{where['revision']}", reading, with_state=with_state).checkpoint
    path = target.path.resolve().parent / where["path"]
    _log.info("source: %s (named in the record of %s)", path, target.path)
    if not path.exists():
        raise CheckpointError(
            f"the source of `{target.path}` is not at `{path}`, and everything is compared with it",
            hint="name it: `mupscale verify NARROW WIDE`",
        )
    return open_checkpoint(path, reading.choice).with_settings(reading.settings or {})


def newest_widened(folder: Path) -> Path:
    """Return the checkpoint in a folder that mupscale wrote last.

    Raises:
        CheckpointError: the folder has no widened checkpoint.
    """
    widened = [file.parent for file in folder.glob(f"*/{RECORD}")]
    for file in folder.glob(f"*.{RECORD}"):
        stem = file.name.removesuffix(f".{RECORD}")
        widened += (path for path in folder.glob(f"{glob.escape(stem)}.*") if path.suffix in TORCH_SUFFIXES)
    for file in folder.glob("*.safetensors"):
        try:
            if METADATA_KEY in read_header(file).metadata:
                widened.append(file)
        except CheckpointError:
            continue  # ignore broken files
    if not widened:
        raise CheckpointError("no widened checkpoint in this folder", hint="name it: `mupscale verify WIDE`")
    return max(widened, key=_written_at)


def _written_at(path: Path) -> float:
    """Return when the weights were written, in seconds since the epoch; `verify` rewrites only the record."""
    inside = (file for file in path.rglob("*") if file.is_file() and file.name != RECORD)
    return max((file.stat().st_mtime for file in (inside if path.is_dir() else (path,))), default=0.0)

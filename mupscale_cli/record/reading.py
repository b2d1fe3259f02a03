"""`mupscale.json` as `verify`, `hparams` and `push` read it: checked, and turned into what it stands for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mupscale_cli.checkpoints.json_files import is_file_name
from mupscale_cli.checkpoints.reading import Checkpoint
from mupscale_cli.errors import CheckpointError, is_printable
from mupscale_cli.plan.methods import Method, make_method
from mupscale_cli.plan.perturbation import Perturbation
from mupscale_cli.record import FORMAT_VERSION

_LARGEST = 2**63


def _seed(noted: Mapping[str, Any]) -> int:
    seed = noted.get("seed", 0)
    if type(seed) is not int or not 0 <= seed < _LARGEST:
        raise ValueError("a seed is a whole number")
    return seed


def recorded_method(record: Mapping[str, Any]) -> tuple[Method, Perturbation | None]:
    """By which method a checkpoint was widened, and with which noise.

    Raises:
        CheckpointError: the record is damaged.
        PlanError: this version does not know the method.
    """
    method, perturbation = record.get("method") or {"name": "mupscale"}, record.get("perturbation")
    try:
        options = {option: value for option, value in method.items() if option not in ("name", "seed")}
        made = make_method(str(method["name"]), seed=_seed(method), **options)
        if perturbation is not None:
            _seed(perturbation)
        return made, None if perturbation is None else Perturbation(**perturbation)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"the record of the widening is damaged: {error!r}", hint="widen again") from error


def recorded_noise(record: Mapping[str, Any]) -> dict[str, float]:
    """The standard deviation of each wide tensor's noise.

    Raises:
        CheckpointError: the record is damaged.
    """
    found = record.get("noise") or {}
    is_whole = isinstance(found, dict) and all(type(std) is float and 0 <= std < math.inf for std in found.values())
    if not is_whole:
        raise CheckpointError(
            "the record of the widening is damaged: sizes of noise are numbers of at least 0", hint="widen again"
        )
    return found


def check_record(record: Mapping[str, Any], file: Path) -> None:
    """Refuse a record of another format, or one that lacks what every command reads of it.

    Raises:
        CheckpointError: this version cannot know what it says, or it is damaged.
    """
    version = record.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise CheckpointError(
            f"the record of `{file}` has format {version!r}, this mupscale reads up to {FORMAT_VERSION}",
            hint="upgrade mupscale",
        )
    source, recipe, axes = record.get("source"), record.get("recipe"), record.get("axes")
    is_whole = (
        isinstance(source, dict)
        and _is_files(source.get("files"), "xxh128")
        and (_is_path(source.get("path")) or all(isinstance(source.get(key), str) for key in ("repo", "revision")))
        and _is_files(record.get("written"), "digest")
        and isinstance(recipe, dict)
        and isinstance(recipe.get("name"), str)
        and ("file" not in recipe or _is_path(recipe["file"]))
        and isinstance(axes, dict)
        and bool(axes)
        and all(isinstance(axis, dict) and type(axis.get("factor")) is int for axis in axes.values())
        and all(isinstance(record.get(key) or {}, dict) for key in ("shared", "called", "optimizer_state"))
        and isinstance(record.get("tie"), (str, type(None)))
    )
    if not is_whole:
        raise CheckpointError(f"the record of `{file}` is damaged", hint="widen the source again")


def _is_files(value: Any, digest: str) -> bool:
    """Whether it has a digest of files by their names."""
    noted = value.values() if isinstance(value, dict) else (None,)
    return all(isinstance(file, dict) and isinstance(file.get(digest), str) for file in noted)


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and is_printable(value)


def carried_state(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the record says of the optimizer's state that lies beside the weights; None where none was carried.

    Raises:
        CheckpointError: it is damaged, or names a file that is not beside them.
    """
    state: dict[str, Any] | None = record.get("optimizer_state")
    if not state:
        return None
    if not is_file_name(state.get("file")) or not all(
        isinstance(state.get(key), str) for key in ("policy", "source_digest", "digest")
    ):
        raise CheckpointError("the record of the optimizer's state is damaged", hint="widen the source again")
    return state


def state_path(wide: Checkpoint, carried: Mapping[str, Any]) -> Path:
    """Where the optimizer's state of a widened checkpoint is.

    Args:
        wide: the checkpoint.
        carried: what its record says of the state.
    """
    name = str(carried["file"])
    return wide.path.parent / f"{wide.path.stem}.{name}" if wide.is_file else wide.path / name

"""`mupscale.json`: what was done to a checkpoint, as `verify`, `hparams` and `push` read it.

The record is a function of input, recipe and factors: no dates, no absolute paths, no host names.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mupscale_cli.checkpoints.config import CONFIG
from mupscale_cli.checkpoints.digests import TensorDigest, safetensors_digest
from mupscale_cli.checkpoints.json_files import is_file_name
from mupscale_cli.checkpoints.reading import Checkpoint
from mupscale_cli.errors import CheckpointError, is_printable
from mupscale_cli.plan import Plan, TensorPlan
from mupscale_cli.plan.methods import Method, make_method
from mupscale_cli.plan.perturbation import Perturbation

FORMAT_VERSION = 2  # 1 had the SHA-256 of the source's files, and no output
METADATA_KEY = "mupscale"
_HASH_BYTES = 1 << 20
_BLANK = "0" * 64
_LARGEST = 2**63


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a narrow checkpoint came from: a path, or a repository and revision of the Hub.

    Attributes:
        path: of the checkpoint, relative to the output's folder.
        repo: on the Hub, None for a path.
        revision: the commit of the repository.
        recipe: path of the recipe, None for a built-in one.
    """

    path: str
    repo: str | None = None
    revision: str | None = None
    recipe: str | None = None


def make_record(plan: Plan, source: Checkpoint, origin: Origin, version: str) -> dict[str, Any]:
    """The record of a widening, before its verification and with blanks for the hashes of its files.

    Args:
        plan: what was done.
        source: the narrow checkpoint.
        origin: what `verify` finds it by.
        version: of mupscale.
    """
    before, after = plan.num_parameters
    recipe_file = {} if origin.recipe is None else {"file": origin.recipe}
    where = {"repo": origin.repo, "revision": origin.revision} if origin.repo else {"path": origin.path}
    return {
        "format_version": FORMAT_VERSION,
        "mupscale_version": version,
        "source": {**where, "files": _source_files(source)},
        "written": {shard.file: {"digest": _BLANK} for shard in plan.shards},
        "recipe": {"name": plan.recipe.name, "sha256": plan.recipe.digest, **recipe_file},
        "axes": {
            axis.name: {"size": axis.size, "wide_size": axis.wide_size, "factor": axis.factor} for axis in plan.axes
        },
        "parameters": {"before": before, "after": after},
        "rules": _rules((*plan.tensors, *plan.parameters)),
        "called": _called(plan),
        "shared": _shared(plan),
        "omitted": list(plan.omitted),
        "tie": plan.tie,
        "rounded": sorted({tensor.target.name for tensor in plan.rounded}),
        "method": plan.method.as_record(),
        "perturbation": plan.perturbation.as_record() if plan.perturbation else None,
        "noise": {},
        "nonfinite": {},
        "overflowed": [],
        "optimizer_state": None,
        "verification": None,
    }


def _called(plan: Plan) -> dict[str, str]:
    """Names of the output's tensors for which the reference model's parameters have others."""
    named = ((tensor.target.name, plan.recipe.parameter_name(tensor.target.name)) for tensor in plan.tensors)
    return {name: parameter for name, parameter in named if name != parameter}


def _shared(plan: Plan) -> dict[str, str]:
    """Names of tensors that the output lacks, and of those that stand for them: tied ones are saved once."""
    if plan.tie not in ("fold", "config"):
        return {}
    present = {tensor.target.name for tensor in plan.tensors}
    pairs = plan.recipe.aliases.items()
    return {name: other for name, other in pairs if name not in present and other in present}


def _source_files(source: Checkpoint) -> dict[str, dict[str, Any]]:
    files = {file.name: {"bytes": file.stat().st_size, "digest": _BLANK} for file in source.files}
    config = _config_file(source)
    return files if config is None else {**files, config.name: file_digest(config)}


def _config_file(source: Checkpoint) -> Path | None:
    config = source.path / CONFIG
    return config if config.is_file() else None


def with_digests(
    record: Mapping[str, Any], source: Checkpoint, known: Mapping[str, TensorDigest], outputs: Mapping[str, str]
) -> dict[str, Any]:
    """A record with the hashes of its files, of the length of what stood there.

    Args:
        record: what `make_record` made.
        source: the narrow checkpoint.
        known: hashes of its tensors; what they lack is read.
        outputs: the hash of every shard.

    Raises:
        CheckpointError: the source changed meanwhile.
    """
    files = dict(record["source"]["files"])
    for file in source.files:
        files[file.name] = {**files[file.name], "digest": safetensors_digest(file, known)}
    shards = {name: {"digest": digest} for name, digest in outputs.items()}
    return {**record, "source": {**record["source"], "files": files}, "written": shards}


def file_digest(file: Path) -> dict[str, Any]:
    """Size in bytes and SHA-256 of a file."""
    digest = hashlib.sha256()
    buffer = bytearray(_HASH_BYTES)
    with open(file, "rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
    return {"bytes": file.stat().st_size, "sha256": digest.hexdigest()}


def _rules(tensors: Iterable[TensorPlan]) -> list[dict[str, Any]]:
    """Each rule once for each way that it was applied: coefficient, multiplicity, shapes, tensors."""
    rules: dict[tuple[Any, ...], dict[str, Any]] = {}
    for tensor in tensors:
        key = (tensor.rule, tensor.layout, tensor.parts, tensor.source.shape)
        if key not in rules:
            rules[key] = {
                "pattern": tensor.rule,
                "layout": tensor.layout,
                "parts": [{"coefficient": c, "multiplicity": m} for c, m in tensor.parts],
                "offset": tensor.offset,
                "shape": list(tensor.source.shape),
                "wide_shape": list(tensor.target.shape),
                "tensors": [],
            }
        rules[key]["tensors"].append(tensor.target.name)
    return list(rules.values())


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
        made = make_method(str(method["name"]), seed=_seed(method), shrink=method.get("shrink"))
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
    """Refuse a record of a later format, or one that lacks what every command reads of it.

    Raises:
        CheckpointError: this version cannot know what it says, or it is damaged.
    """
    version = record.get("format_version")
    if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        raise CheckpointError(
            f"the record of `{file}` has format {version!r}, this mupscale reads up to {FORMAT_VERSION}",
            hint="upgrade mupscale",
        )
    source, recipe, axes = record.get("source"), record.get("recipe"), record.get("axes")
    is_whole = (
        isinstance(source, dict)
        and _is_files(source.get("files"))
        and (_is_path(source.get("path")) or all(isinstance(source.get(key), str) for key in ("repo", "revision")))
        and _is_files(record.get("written", {}))
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


def _is_files(value: Any) -> bool:
    """Whether it says something of files by their names."""
    if not isinstance(value, dict) or not all(isinstance(noted, dict) for noted in value.values()):
        return False
    return all(isinstance(noted.get("digest", noted.get("sha256")), str) for noted in value.values())


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
    if not is_file_name(state.get("file")) or not isinstance(state.get("policy"), str):
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


def source_resized(record: Mapping[str, Any], source: Checkpoint) -> str | None:
    """The name of a file of the source that is not among those of the record, or has another size."""
    files = record.get("source", {}).get("files", {})
    config = _config_file(source)
    for file in source.files if config is None else (*source.files, config):
        noted = files.get(file.name)
        if noted is None or noted.get("bytes") != file.stat().st_size:
            return str(file.name)
    return None


def source_changed(
    record: Mapping[str, Any], source: Checkpoint, known: Mapping[str, TensorDigest] | None = None
) -> str | None:
    """The name of a file of the source that is not what it was when the record was made.

    Args:
        record: of the widening.
        source: the narrow checkpoint.
        known: hashes of its tensors, as far as they have been taken; what they lack is read.
    """
    if name := source_resized(record, source):
        return name
    files = record.get("source", {}).get("files", {})
    config = _config_file(source)
    for file in source.files if config is None else (*source.files, config):
        noted = files[file.name]
        found = safetensors_digest(file, known) if "digest" in noted else file_digest(file)["sha256"]
        if found != noted.get("digest", noted.get("sha256")):
            return file.name
    return None


def output_changed(record: Mapping[str, Any], wide: Checkpoint) -> str | None:
    """The name of a file of the output that is not what was written; None too where the record says nothing of it."""
    files = record.get("written", {})
    if not files:
        return None
    if wide.is_file:  # whatever it is called by now
        noted, *others = files.values()
        return None if not others and noted["digest"] == safetensors_digest(wide.path) else str(wide.path.name)
    by_name = {file.name: file for file in wide.files}
    if by_name.keys() != files.keys():
        return str(min(by_name.keys() ^ files.keys()))
    for name, noted in files.items():
        if safetensors_digest(by_name[name]) != noted["digest"]:
            return str(name)
    return None


def relative_path(source: Path, output: Path) -> str:
    """The path of the source as seen from the folder of the output, so that both can move together."""
    try:
        return os.path.relpath(source.resolve(), output.resolve().parent)
    except ValueError:  # two drives of Windows
        return str(source.resolve())

"""`mupscale.json` as a widening makes it: what was done to a checkpoint.

The record is a function of input, recipe and factors: no dates, no absolute paths, no host names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mupscale_cli.checkpoints.digests import file_digest
from mupscale_cli.checkpoints.hub.ids import stated_sha256
from mupscale_cli.checkpoints.reading import Checkpoint
from mupscale_cli.plan import Plan, TensorPlan
from mupscale_cli.record import FORMAT_VERSION
from mupscale_cli.record.changes import source_files


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


def hash_source_files(
    source: Checkpoint, progress: Callable[[int], None] = lambda _: None, *, is_remote: bool = False
) -> dict[str, dict[str, Any]]:
    """What the record says of a narrow checkpoint's files; reads all of them to hash them.

    Args:
        source: the narrow checkpoint.
        progress: called with the bytes just hashed.
        is_remote: whether it is a model of the Hub, in the Hub's cache.

    Raises:
        CheckpointError: one cannot be read.
    """
    noted = {}
    for file in source_files(source):
        noted[file.name] = {"bytes": file.stat().st_size, "xxh128": file_digest(file, progress)}
        if is_remote and (stated := stated_sha256(file)):
            noted[file.name]["sha256"] = stated
    return noted


def make_record(plan: Plan, files: Mapping[str, Mapping[str, Any]], origin: Origin, version: str) -> dict[str, Any]:
    """The record of a widening before anything is written.

    Args:
        plan: what was done.
        files: what `hash_source_files` says of the narrow checkpoint.
        origin: what `verify` finds it by.
        version: of mupscale.
    """
    before, after = plan.num_parameters
    recipe_file = {} if origin.recipe is None else {"file": origin.recipe}
    where = {"repo": origin.repo, "revision": origin.revision} if origin.repo else {"path": origin.path}
    return {
        "format_version": FORMAT_VERSION,
        "mupscale_version": version,
        "source": {**where, "files": files},
        "written": {},
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


def relative_path(source: Path, output: Path) -> str:
    """The path of the source as seen from the folder of the output, so that both can move together."""
    try:
        return os.path.relpath(source.resolve(), output.resolve().parent)
    except ValueError:  # two drives of Windows
        return str(source.resolve())

"""Create the record of a widening, the content of mupscale.json.

The record depends only on input, recipe and options: it contains no dates, absolute paths or host names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mupscale_cli.checkpoints.digests import file_digest
from mupscale_cli.checkpoints.fates import PlannedFile, grouped
from mupscale_cli.checkpoints.hub.ids import stated_sha256
from mupscale_cli.checkpoints.reading import Checkpoint
from mupscale_cli.plan import Plan, TensorPlan
from mupscale_cli.plan.adapters import parameter_name
from mupscale_cli.record import FORMAT_VERSION
from mupscale_cli.record.changes import source_files


@dataclass(frozen=True, slots=True)
class Origin:
    """The origin of a narrow checkpoint: a path, or a commit of a repository on the Hub.

    Attributes:
        path: path of the checkpoint, relative to the output's folder; empty for a repository.
        repo: repository on the Hub; None for a path.
        revision: commit of the repository; None for a path.
        recipe: path of the recipe, relative to the output's folder; None for a built-in recipe.
        config: keys of the config that its file lacks or has with other values.
        form: what the user said about its form.
    """

    path: str
    repo: str | None = None
    revision: str | None = None
    recipe: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    form: Mapping[str, Any] = field(default_factory=dict)


def hash_source_files(
    source: Checkpoint, progress: Callable[[int], None] = lambda _: None, *, is_remote: bool = False
) -> dict[str, dict[str, Any]]:
    """Hash the files of a narrow checkpoint; return size and digests by file name, as in the record.

    Args:
        source: the narrow checkpoint.
        progress: called with the number of bytes just hashed.
        is_remote: whether the files are in the Hub's cache.

    Raises:
        CheckpointError: a file cannot be read.
    """
    entries = {}
    for name, file in source_files(source).items():
        entries[name] = {"bytes": file.stat().st_size, "xxh128": file_digest(file, progress)}
        if is_remote and (stated := stated_sha256(file)):
            entries[name]["sha256"] = stated
    return entries


def make_record(
    plan: Plan,
    files: Mapping[str, Mapping[str, Any]],
    origin: Origin,
    version: str,
    fates: Iterable[PlannedFile] = (),
) -> dict[str, Any]:
    """Create the record of a widening before its output is written.

    Args:
        plan: the plan of the widening.
        files: the result of `hash_source_files` for the narrow checkpoint.
        origin: the origin of the narrow checkpoint, where `verify` finds it.
        version: version of mupscale.
        fates: what becomes of every file of the narrow checkpoint.
    """
    before, after = plan.num_parameters
    found = {"file": origin.recipe, "text": plan.recipe.text}
    recipe = {key: value for key, value in found.items() if value is not None}
    where = {"repo": origin.repo, "revision": origin.revision} if origin.repo else {"path": origin.path}
    said = {"config": dict(origin.config), "form": dict(origin.form)}
    settings = {key: value for key, value in said.items() if value}
    return {
        "format_version": FORMAT_VERSION,
        "mupscale_version": version,
        "source": {**where, "files": files, **settings},
        "fates": {
            name: {"fate": decision.fate, "reason": decision.reason, "files": count}
            for decision, names in grouped(fates).items()
            for name, count in names.items()
        },
        "written": {},
        "others": {},
        "recipe": {"name": plan.recipe.name, "sha256": plan.recipe.digest, **recipe},
        "axes": {
            axis.name: {"size": axis.size, "wide_size": axis.wide_size, "factor": axis.factor} for axis in plan.axes
        },
        "blocks": {
            name: {
                "size": units.size,
                "wide_size": units.wide_size,
                "sources": list(units.sources),
                "new": list(units.new),
            }
            for name, units in plan.blocks.items()
        },
        "parameters": {"before": before, "after": after},
        "rules": _rules((*plan.tensors, *plan.parameters)),
        "called": _called(plan),
        "to": plan.goal.name if plan.goal else None,
        "shared": _shared(plan),
        "omitted": list(plan.omitted),
        "tie": plan.tie,
        **({"clean_names": True} if plan.wrapping.is_stripped else {}),
        "rounded": sorted({tensor.target.name for tensor in plan.rounded}),
        "method": plan.method.as_record(),
        "perturbation": plan.perturbation.as_record() if plan.perturbation else None,
        "noise": {},
        "nonfinite": {},
        "overflowed": [],
        "optimizer_state": None,
        "adapters": {},
        "modules": {module.folder: {"type": module.type, "rules": _rules(module.tensors)} for module in plan.modules},
        "verification": None,
    }


def record_adapter(plan: Plan) -> dict[str, Any]:
    """Create the part of an adapter's entry in the record that its plan decides."""
    names = (tensor.target.name for tensor in plan.tensors)
    return {
        "rules": _rules(plan.tensors),
        "called": {name: parameter_name(name, plan.config or {}) for name in names},
    }


def _called(plan: Plan) -> dict[str, str]:
    """Return the reference model's parameter names that differ from the output's tensor names, by tensor."""
    named = ((tensor.target.name, plan.parameter_name(tensor.target.name)) for tensor in plan.tensors)
    return {name: parameter for name, parameter in named if name != parameter}


def _shared(plan: Plan) -> dict[str, str]:
    """Return tied tensors that the output omits, with the stored tensor of each."""
    if plan.tie not in ("fold", "config"):
        return {}
    present = {plan.wrapping.plain(tensor.target.name): tensor.target.name for tensor in plan.tensors}
    return {
        plan.wrapping.wrap(name, like=present[other]): present[other]
        for name, others in plan.recipe.aliases.items()
        for other in others
        if name not in present and other in present
    }


def _rules(tensors: Iterable[TensorPlan]) -> list[dict[str, Any]]:
    """Group tensors by rule, layout, parts, shape and kind of block."""
    rules: dict[tuple[Any, ...], dict[str, Any]] = {}
    for tensor in tensors:
        block = tensor.block and {"stack": tensor.block.stack, "is_new": tensor.is_new, "writes": tensor.block.writes}
        key = (tensor.rule, tensor.layout, tensor.parts, tensor.source.shape, tensor.fill, str(block))
        if key not in rules:
            rules[key] = {
                "pattern": tensor.rule,
                "layout": tensor.layout,
                "parts": [{"coefficient": c, "multiplicity": m} for c, m in tensor.parts],
                "offset": tensor.offset,
                "shape": list(tensor.source.shape),
                "wide_shape": list(tensor.target.shape),
                "fill": tensor.fill,
                "block": block,
                "tensors": [],
            }
        rules[key]["tensors"].append(tensor.target.name)
    return list(rules.values())


def relative_path(source: Path, output: Path) -> str:
    """Return the path of a source relative to the output's folder, which stays valid if both move together."""
    try:
        return os.path.relpath(source.resolve(), output.resolve().parent)
    except ValueError:  # on different drives of Windows
        return str(source.resolve())

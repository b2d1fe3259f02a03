"""Adapters that are widened with their base model: find, plan and write them. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from mupscale_cli.checkpoints.adapters import adapter_digest, has_adapter, open_adapter
from mupscale_cli.checkpoints.config import CONFIG
from mupscale_cli.checkpoints.fates import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Decision, PlannedFile
from mupscale_cli.checkpoints.output_files import copy_file, inner_file, output_errors, write_json
from mupscale_cli.checkpoints.reading import Checkpoint
from mupscale_cli.dtypes import TensorSpec
from mupscale_cli.errors import CheckpointError, PlanError, RecipeError
from mupscale_cli.files import Identity
from mupscale_cli.plan import Plan, make_plan
from mupscale_cli.plan.adapters import new_heads, plan_adapter
from mupscale_cli.record.making import record_adapter, relative_path

if TYPE_CHECKING:
    from mupscale_cli.record.types import Record

BESIDE = "."  # the folder, in the output, of an adapter that lies beside the base model's weights


@dataclass(frozen=True)
class PlannedAdapter:
    """An adapter to widen.

    Attributes:
        source: the narrow adapter.
        folder: folder of the wide adapter within the base model's output: `adapters/NAME`, or `.`.
        plan: the plan of its tensors and its config.
    """

    source: Checkpoint
    folder: str
    plan: Plan

    @cached_property
    def files(self) -> tuple[PlannedFile, ...]:
        """What becomes of every file in a folder of its own, by its path in the output; `.` belongs to the model."""
        if self.folder == BESIDE:
            return ()
        base = {CONFIG: Decision("left behind", "the config of the base model")}
        return tuple(replace(file, name=f"{self.folder}/{file.name}") for file in self.source.plan_files(base))

    @property
    def copied(self) -> dict[str, Path]:
        """The files that are copied, by their path in the output."""
        start = len(self.folder) + 1
        carried = (file.name for file in self.files if file.fate == "carried")
        return {name: self.source.path / name[start:] for name in carried}

    @property
    def names(self) -> tuple[str, ...]:
        """The paths of its files within the output."""
        own = ((PurePosixPath(self.folder) / name).as_posix() for name in (ADAPTER_WEIGHTS, ADAPTER_CONFIG))
        return (*own, *self.copied)

    @property
    def opened(self) -> dict[Path, Identity | None]:
        """Identities of the files that it is made from, before any of them was read."""
        read = (self.source.path / ADAPTER_WEIGHTS, self.source.path / ADAPTER_CONFIG, *self.copied.values())
        return {file: self.source.opened[file] for file in read}

    def write(
        self, directory: Path, output: Path, progress: Callable[[int], None], *, allow_nonfinite: bool
    ) -> dict[str, Any]:
        """Write the wide adapter into the staged output.

        Args:
            directory: the staged output.
            output: the final path of the output.
            progress: called with the bytes of tensor data just written.
            allow_nonfinite: whether to copy NaNs and infinities instead of refusing them.

        Returns:
            The record's entry for the adapter.
        """
        from mupscale_cli.engine.shards import write_shards

        folder = directory / self.folder
        with output_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_shards(
            self.plan.shards,
            self.source.tensors,
            folder,
            metadata={"format": "pt"},
            progress=progress,
            allow_nonfinite=allow_nonfinite,
        )
        write_json(folder / ADAPTER_CONFIG, self.plan.config)
        for name, file in self.copied.items():
            copy_file(file, inner_file(directory, name))
        source = {"path": relative_path(self.source.path, output), "digest": adapter_digest(self.source.path)}
        return {"source": source, **record_adapter(self.plan)}


def plan_adapters(
    source: Checkpoint, plan: Plan, given: Sequence[str | Path], output: str
) -> tuple[PlannedAdapter, ...]:
    """Plan the adapter beside the weights of a model, if there is one, and those that the user names.

    Args:
        source: the narrow base model.
        plan: its plan.
        given: folders of adapters.
        output: path of the wide base model, which each adapter's config will name.

    Raises:
        MupscaleError: an adapter cannot be read or widened, does not belong to the model, or shares another's name.
    """
    folders = adapter_folders(source, given)
    return tuple(_plan(source, plan, folder, open_adapter(path), output) for folder, path in folders.items())


def adapter_folders(source: Checkpoint, given: Sequence[str | Path]) -> dict[str, Path]:
    """Return the folder of each adapter to widen, by its folder in the output.

    Raises:
        PlanError: two adapters have the same name, or the base model is a single file.
    """
    if source.is_file and given:
        raise PlanError("an adapter needs its base model in a folder, not as a single file", hint="omit `--adapter`")
    folders = {BESIDE: source.path} if not source.is_file and has_adapter(source.path) else {}
    for path in map(Path, given):
        name = f"adapters/{path.resolve().name}"
        if name in folders:
            raise PlanError(f"two adapters are called `{path.resolve().name}`", hint="rename the folder of one")
        folders[name] = path
    return folders


def with_adapters(
    files: Iterable[PlannedFile], source: Checkpoint, adapters: Iterable[PlannedAdapter]
) -> tuple[PlannedFile, ...]:
    """Return the files of a model and those of its adapters, which may lie in the model's folder.

    Args:
        files: what becomes of the model's files.
        source: the narrow model.
        adapters: the adapters to widen with it.
    """
    adapters = tuple(adapters)
    inside = [adapter.source.path.resolve() for adapter in adapters if adapter.folder != BESIDE]
    folder = source.path.resolve()
    own = (file for file in files if not any((folder / file.name).is_relative_to(path) for path in inside))
    return (*own, *(file for adapter in adapters for file in adapter.files))


def plan_recorded_adapters(
    narrow: Checkpoint, wide: Checkpoint, plan: Plan, record: Record
) -> Iterator[tuple[PlannedAdapter, Checkpoint]]:
    """Plan again the adapters that were widened with a model, and open the wide ones.

    Args:
        narrow: the narrow base model.
        wide: its widening.
        plan: its plan.
        record: its record.

    Raises:
        MupscaleError: an adapter is missing, or the narrow one is not the one that was widened.
    """
    for folder, recorded in record["adapters"].items():
        found, source = open_adapter(wide.path / folder), recorded["source"]
        path = narrow.path if folder == BESIDE else wide.path.resolve().parent / source["path"]
        adapter = open_adapter(path)
        if adapter_digest(path) != source["digest"]:
            raise CheckpointError(
                f"the adapter in `{path}` is not the one that `{found.path}` was widened from",
                hint="it may have been trained further; widen again",
            )
        base = str((found.config or {}).get("base_model_name_or_path"))
        yield _plan(narrow, plan, folder, adapter, base), found


def _plan(source: Checkpoint, plan: Plan, folder: str, adapter: Checkpoint, base: str) -> PlannedAdapter:
    config = adapter.config or {}
    try:
        heads = new_heads(plan, adapter.specs)
        planned = plan_adapter(_with_heads(source, plan, heads), adapter.specs, config, ADAPTER_WEIGHTS, base)
    except PlanError as error:
        hint = f"{error.hint}; or move it out of the model's folder" if folder == BESIDE else error.hint
        raise PlanError(f"`{adapter.path}`: {error.message}", hint=hint) from error
    return PlannedAdapter(adapter, folder, planned)


def _with_heads(source: Checkpoint, plan: Plan, heads: Sequence[TensorSpec]) -> Plan:
    """Plan the base model together with tensors that only the adapter has, such as a classifier."""
    if not heads:
        return plan
    specs = (*source.specs, *heads)
    try:
        return make_plan(plan.recipe, specs, source.config, plan.request, tie=plan.tie, method=plan.method)
    except RecipeError:  # no rule for them; planning the adapter says which tensor the base model lacks
        return plan

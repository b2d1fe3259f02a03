"""Carry optimizer state along with a checkpoint: find it, plan it, write it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mupscale_cli.checkpoints.digests import files_digest
from mupscale_cli.checkpoints.output_files import copy_file
from mupscale_cli.checkpoints.reading import Checkpoint
from mupscale_cli.engine.ranks import Ranks
from mupscale_cli.errors import PlanError
from mupscale_cli.files import Identity, identities
from mupscale_cli.optimizers.fates import fates_with_state
from mupscale_cli.optimizers.finding import open_optimizer
from mupscale_cli.optimizers.formats.base import OptimizerSource, WideState, WriteOptions
from mupscale_cli.optimizers.options import StateOptions
from mupscale_cli.optimizers.state_plan import Policy
from mupscale_cli.plan import Plan

_log = logging.getLogger(__name__)  # `-v` shows it


@dataclass(frozen=True)
class CarriedState:
    """Planned optimizer state, with the other files that resuming needs.

    Attributes:
        source: the narrow state.
        name: the name of the file or folder to write.
        state: the planned wide state.
        policy: how the state is widened.
        companions: files of a trainer's checkpoint that are copied unchanged.
        schedulers: files with the state of a learning rate scheduler.
        key: dotted keys that lead to the state in a file that holds more.
        named: optimizers that the user says the state belongs to.
        max_shard_bytes: largest file of a format with several files; None for a single file.
        opened: identities of all these files before any of them was read.
    """

    source: OptimizerSource
    name: str
    state: WideState
    policy: Policy
    companions: tuple[Path, ...]
    schedulers: tuple[Path, ...]
    key: str | None = None
    named: tuple[str, ...] = ()
    max_shard_bytes: int | None = None
    opened: Mapping[Path, Identity | None] = field(default_factory=dict)

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.source.path, *self.companions, *self.schedulers)

    def write(
        self, directory: Path, progress: Callable[[int], None], ranks: Ranks, allow_nonfinite: bool
    ) -> dict[str, Any] | None:
        """Write everything into the staged output.

        Returns:
            The record's entry for the state; None except in the first process.
        """
        from mupscale_cli.optimizers.scheduler import widen_scheduler

        options = WriteOptions(directory, self.name, progress, allow_nonfinite, ranks, self.max_shard_bytes)
        written = self.state.write(options)
        if written is None:
            return None
        for file in self.companions:
            copy_file(file, directory / file.name)
        for file in self.schedulers:
            widen_scheduler(file, directory / file.name, self.state.groups)
        copied = {"copied": list(self.state.copied)} if self.state.copied else {}
        key = {"key": self.key} if self.key else {}
        counts = {"nonfinite": written.nonfinite} if written.nonfinite else {}
        hashes = {"source_digest": files_digest(self.source.files), "digest": written.digest}
        named = {"named": list(self.named)} if self.named else {}
        others = written.beside(directory)
        return {
            "file": written.name,
            **({"files": others} if others else {}),
            **key,
            **self.state.about,
            **named,
            "policy": self.policy,
            **copied,
            **counts,
            **hashes,
        }


def plan_carried_state(
    options: StateOptions, source: Checkpoint, plan: Plan, max_shard_bytes: int
) -> CarriedState | None:
    """Find the optimizer state of a checkpoint and plan its widening.

    Args:
        options: where the state is, and how to widen it.
        source: the checkpoint that it belongs to.
        plan: the plan of the weights.
        max_shard_bytes: largest file of a directory.

    Returns:
        The planned state; None if there is none, or the options exclude it.

    Raises:
        MupscaleError: the state cannot be read, does not belong to the weights, or cannot be widened.
    """
    path = options.find(source)
    if path is None:
        reason = (
            "excluded by the options" if options.optimizer == "none" else f"found none with `{source.display_name}`"
        )
        _log.info("no optimizer state: %s", reason)
        return None
    _log.info("optimizer state: %s, policy `%s`", path, options.policy)
    if plan.tie == "untie":
        raise PlanError(
            f"`{path}` has shared moments for embedding and readout, which train separately once they are untied",
            hint="omit the state with `--optimizer none`"
            + (", or choose another `--tie`" if plan.recipe.tie and len(plan.recipe.tie.ways) > 1 else ""),
        )
    nearby = path.rglob("*") if path.is_dir() else path.parent.iterdir()  # shards lie beside their index
    before = identities(file for file in nearby if file.is_file())
    opened = open_optimizer(path, source.config, key=options.key, kinds=options.kinds, trained=source.trained)
    state = opened.widen(plan, options.policy)
    # With a single file the state is called `NAME.optimizer.pt`; publishing adds NAME.
    name = path.name
    if source.is_file:  # several files of one state become one
        name = name.removeprefix(f"{source.path.stem}.").replace(".safetensors.index.json", ".safetensors")
    beside = fates_with_state(source, path).items()
    companions = tuple(source.path / name for name, decision in beside if decision.fate == "carried")
    schedulers = tuple(source.path / name for name, decision in beside if decision.fate == "rewritten")
    limit = None if source.is_file else max_shard_bytes
    used = (*opened.files, *companions, *schedulers)
    return CarriedState(
        opened,
        name,
        state,
        options.policy,
        companions,
        schedulers,
        options.key,
        options.kinds,
        limit,
        opened={file: known for file, known in {**source.opened, **before}.items() if file in used},
    )

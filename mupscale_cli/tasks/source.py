"""The source of a task: a checkpoint on this machine or on the Hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mupscale_cli.architecture.types import Recipe
from mupscale_cli.checkpoints.fates import PlannedFile
from mupscale_cli.checkpoints.hub.ids import HubId, parse_hub_id
from mupscale_cli.checkpoints.hub.reading import RemoteModel, download, open_remote
from mupscale_cli.checkpoints.reading import Checkpoint, open_checkpoint
from mupscale_cli.errors import CheckpointError
from mupscale_cli.optimizers.carrying import plan_carried_state
from mupscale_cli.optimizers.fates import plan_files
from mupscale_cli.optimizers.finding import state_name, state_names
from mupscale_cli.optimizers.options import StateOptions
from mupscale_cli.plan import DEFAULT_SHARD_BYTES, Plan
from mupscale_cli.record.making import Origin, relative_path
from mupscale_cli.tasks.reading import AS_STORED, Reading
from mupscale_cli.tasks.recognition import class_defaults, missing_settings, stored_config


@dataclass(frozen=True)
class Source:
    """A checkpoint and where it comes from.

    Attributes:
        checkpoint: its headers.
        remote: its model on the Hub; None for a path.
        is_local: whether its data are on this machine.
        found: config keys that the config lacks and the tensors show.
        assumed: the other keys of a config that was made because there is none: the defaults of its class.
    """

    checkpoint: Checkpoint
    remote: RemoteModel | None = None
    is_local: bool = True
    found: Mapping[str, Any] = field(default_factory=dict)
    assumed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def hub(self) -> HubId | None:
        return self.remote.id if self.remote else None

    def fetched(self, state: StateOptions | None = None) -> Source:
        """Return the source with its data on this machine; download what is needed of a model on the Hub.

        Args:
            state: options of the optimizer state, which decide whether to download it.

        Raises:
            HubError: the download failed.
        """
        if self.remote is None or self.is_local:
            return self
        checkpoint = download(self.remote, self._state_names(state)).with_settings(self.checkpoint.settings)
        return replace(self, checkpoint=checkpoint, is_local=True)

    def downloads(self, state: StateOptions | None = None) -> dict[Path, int]:
        """Return the files that `fetched` would download: their paths in the cache, and their bytes."""
        if self.remote is None or self.is_local:
            return {}
        return self.remote.missing(self._state_names(state))

    def _state_names(self, state: StateOptions | None) -> tuple[str, ...]:
        assert self.remote is not None
        return state_names(self.remote.sizes) if state is not None and state.optimizer == "auto" else ()

    def plan_files(self, plan: Plan, options: StateOptions) -> tuple[PlannedFile, ...]:
        """Plan what becomes of every file, with the optimizer state that the options choose.

        Raises:
            CheckpointError: a file to copy is too large, or is a link that leads out of the checkpoint.
        """
        return plan_files(self.checkpoint, plan, self._state_path(options))

    def _state_path(self, options: StateOptions) -> Path | None:
        if self.remote is not None and options.optimizer == "auto":
            name = state_name(self.remote.sizes)
            return None if name is None else self.checkpoint.path / name
        return options.find(self.checkpoint)

    def find_state(self, options: StateOptions) -> str | None:
        """Return the path of the optimizer state to widen, or its name on the Hub; None if there is none."""
        path = self._state_path(options)
        if path is None or self.remote is None or path.parent != self.checkpoint.path:
            return None if path is None else str(path)
        return f"{self.remote.id}/{path.name}"

    def optimizer_kinds(self, plan: Plan, options: StateOptions) -> tuple[str, ...]:
        """Return which optimizers the state to widen belongs to, with the errors of `about_state`."""
        return tuple(self.about_state(plan, options).get("kinds", ()))

    def about_state(self, plan: Plan, options: StateOptions) -> Mapping[str, Any]:
        """Return what the record of a widening would say about the optimizer state, such as its kinds and groups.

        It is empty without a state, if the state is not downloaded, or torch not installed.

        Raises:
            MupscaleError: the state does not tell, does not belong to the weights, or cannot be widened.
        """
        if not self.is_local or find_spec("torch") is None:
            return {}
        if (trained := self.checkpoint.trained) is not None:
            from mupscale_cli.optimizers.in_kind import plan_in_kind  # imports torch

            in_kind = plan_in_kind(self.checkpoint, trained, plan, options)
            if in_kind.key is not None:
                return in_kind.state.about
        carried = plan_carried_state(options, self.checkpoint, plan, DEFAULT_SHARD_BYTES)
        return {} if carried is None else carried.state.about

    @property
    def default_directory(self) -> Path:
        return Path() if self.hub else self.checkpoint.path.parent

    @property
    def suffix(self) -> str:
        """The suffix of the output's name if the checkpoint is a single file."""
        return ".safetensors" if self.checkpoint.trained is None else self.checkpoint.path.suffix

    @property
    def stem(self) -> str:
        if self.hub:
            return self.hub.name
        path = self.checkpoint.path
        return path.stem if self.checkpoint.is_file else path.resolve().name

    def origin(self, output: Path, recipe: Recipe) -> Origin:
        """Return the origin of the source and the recipe, with paths relative to the output."""
        file = None if recipe.path is None else relative_path(recipe.path, output)
        if self.remote:
            return Origin("", self.remote.id.repo, self.remote.commit, file, self.checkpoint.settings)
        path, said = relative_path(self.checkpoint.path, output), self.checkpoint
        return Origin(path, None, None, file, said.settings, said.form)


def find_source(
    checkpoint: str | Path | Source,
    reading: Reading = AS_STORED,
    *,
    recipe: str | Path | None = None,
    headers_only: bool = False,
    with_state: bool = False,
) -> Source:
    """Open a checkpoint by its path or, if no such path exists, by its id on the Hub.

    Args:
        checkpoint: a weight file, a directory of a model or of a trainer, or a Hub id. A `Source` is returned
            unchanged.
        reading: what the user says about it.
        recipe: name or file of its recipe, if the user named one.
        headers_only: download only headers and config of a model on the Hub.
        with_state: also download the optimizer state of a model on the Hub.

    Raises:
        CheckpointError: the checkpoint does not exist, is invalid, or does not have the form that the user names.
        HubError: the Hub does not provide the model.
    """
    if isinstance(checkpoint, Source):
        return checkpoint
    path = Path(checkpoint)
    hub = None if path.exists() else parse_hub_id(str(checkpoint))
    if hub is None:
        return described(Source(open_checkpoint(path, reading.choice)), recipe, reading.settings)
    if reading.choice.is_made:
        raise CheckpointError(
            f"`{hub}` is on the Hub, where only safetensors are read, which have no layout and no key of weights",
            hint=f"download it first: `hf download {hub.repo} --local-dir {hub.name}`",
        )
    remote = open_remote(hub)
    source = described(Source(remote.checkpoint, remote, is_local=False), recipe, reading.settings)
    return source if headers_only else source.fetched(StateOptions() if with_state else None)


def described(source: Source, recipe: str | Path | None, settings: Mapping[str, Any] | None) -> Source:
    """Return a source whose config has what the user and the tensors say, and its file does not.

    A config without a file is written in full, with the defaults of its class, so that none is taken over in silence.
    """
    stated = source.checkpoint.with_settings(settings or {})
    found = missing_settings(stated, recipe)
    known = stated.with_settings(found)
    assumed = class_defaults(known) if recipe is not None and stored_config(stated) is None else {}
    return replace(source, checkpoint=known.with_settings(assumed), found=found, assumed=assumed)

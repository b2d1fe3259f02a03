"""What a task starts from: a checkpoint on this machine or on the Hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mupscale_cli.architecture.types import Recipe
from mupscale_cli.checkpoints.hub.ids import HubId, parse_hub_id
from mupscale_cli.checkpoints.hub.reading import RemoteModel, download, open_remote
from mupscale_cli.checkpoints.reading import Checkpoint, open_checkpoint
from mupscale_cli.optimizers.finding import state_name, state_names
from mupscale_cli.optimizers.options import StateOptions
from mupscale_cli.record.making import Origin, relative_path


@dataclass(frozen=True)
class Source:
    """A narrow checkpoint and the name that it was asked for by.

    Attributes:
        checkpoint: its headers.
        remote: of the Hub, None for a path.
        is_here: whether its data are on this machine.
    """

    checkpoint: Checkpoint
    remote: RemoteModel | None = None
    is_here: bool = True

    @property
    def hub(self) -> HubId | None:
        return self.remote.id if self.remote else None

    def fetched(self, state: StateOptions | None = None) -> Source:
        """The same with its data on this machine: of a model of the Hub what is needed is downloaded.

        Args:
            state: what is done with the optimizer's state, which is downloaded if that needs it.

        Raises:
            HubError: it cannot be downloaded.
        """
        if self.remote is None or self.is_here:
            return self
        return Source(download(self.remote, self._state_names(state)), self.remote)

    def missing_bytes(self, state: StateOptions | None = None) -> int:
        """How much `fetched` has to download."""
        if self.remote is None or self.is_here:
            return 0
        return self.remote.missing_bytes(self._state_names(state))

    def _state_names(self, state: StateOptions | None) -> tuple[str, ...]:
        assert self.remote is not None
        return state_names(self.remote.sizes) if state is not None and state.optimizer == "auto" else ()

    def find_state(self, options: StateOptions) -> str | None:
        """The optimizer's state that would be carried, by its path or its name on the Hub."""
        if self.remote is not None and options.optimizer == "auto":
            name = state_name(self.remote.sizes)
            return None if name is None else f"{self.remote.id}/{name}"
        path = options.find(self.checkpoint)
        return None if path is None else str(path)

    @property
    def default_directory(self) -> Path:
        return Path() if self.hub else self.checkpoint.path.parent

    @property
    def stem(self) -> str:
        if self.hub:
            return self.hub.name
        path = self.checkpoint.path
        return path.stem if self.checkpoint.is_file else path.resolve().name

    def origin(self, output: Path, recipe: Recipe) -> Origin:
        """Where everything came from, as seen from the output."""
        file = None if recipe.path is None else relative_path(recipe.path, output)
        if self.remote:
            return Origin(path="", repo=self.remote.id.repo, revision=self.remote.commit, recipe=file)
        return Origin(relative_path(self.checkpoint.path, output), recipe=file)


def find_source(checkpoint: str | Path | Source, *, headers_only: bool = False, with_state: bool = False) -> Source:
    """Open a checkpoint by path, or by its id on the Hub where there is no such path.

    Args:
        checkpoint: a safetensors file, a model directory, or a Hub id; what was found already is returned as it is.
        headers_only: of a model of the Hub, download nothing but what describes it.
        with_state: of a model of the Hub, download the optimizer's state as well.

    Raises:
        CheckpointError: there is none, or it is not valid.
    """
    if isinstance(checkpoint, Source):
        return checkpoint
    path = Path(checkpoint)
    hub = None if path.exists() else parse_hub_id(str(checkpoint))
    if hub is None:
        return Source(open_checkpoint(path))
    remote = open_remote(hub)
    source = Source(remote.checkpoint, remote, is_here=False)
    return source if headers_only else source.fetched(StateOptions() if with_state else None)

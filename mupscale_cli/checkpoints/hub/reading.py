"""Reading checkpoints on the Hub: headers with range requests, whole files only when they are needed."""

from __future__ import annotations

import glob
import sys
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from mupscale_cli.checkpoints.config import CONFIG
from mupscale_cli.checkpoints.formats.base import Folder
from mupscale_cli.checkpoints.header import open_file
from mupscale_cli.checkpoints.hub.bars import progress_bars
from mupscale_cli.checkpoints.hub.failures import hub_errors, transport_error
from mupscale_cli.checkpoints.hub.ids import HubId, parse_hub_id
from mupscale_cli.checkpoints.json_files import read_json
from mupscale_cli.checkpoints.reading import INDICES, RECORD, Checkpoint, is_carried, open_checkpoint, open_folder
from mupscale_cli.errors import CheckpointError, HubError
from mupscale_cli.files import read_text

_FIRST_BYTES = 1 << 16  # size of the first request; most headers fit, longer ones take a second request
_SERVER_ERROR = 500
_CARD = "README.md"


@dataclass(frozen=True)
class RemoteModel:
    """A model on the Hub at one commit; only its config, index, record and headers have been read.

    Attributes:
        id: id that the user passed.
        commit: commit hash.
        folder: the commit's folder in the cache.
        sizes: sizes of its files in bytes, by path; only cached files if the Hub was not reachable.
        checkpoint: the checkpoint, from its headers.
        is_cached: whether only the cache was available.
    """

    id: HubId
    commit: str
    folder: Path
    sizes: Mapping[str, int]
    checkpoint: Checkpoint
    is_cached: bool

    def needed(self, more: Collection[str] = ()) -> tuple[str, ...]:
        """Return the names of the files that widening reads: weights, config, tokenizer, and `more`."""
        own = {file.name for file in self.checkpoint.files} | {CONFIG, RECORD, *INDICES, *more}
        return tuple(sorted(name for name in self.sizes if name in own or ("/" not in name and is_carried(name))))

    def missing_bytes(self, more: Collection[str] = ()) -> int:
        """Return how many bytes of the needed files still have to be downloaded."""
        return sum(self.sizes[name] for name in self.needed(more) if not (self.folder / name).exists())


def open_remote(model: HubId) -> RemoteModel:
    """Read config, index and headers of a model on the Hub, but no tensor data.

    Raises:
        HubError: the model does not exist, access is denied, or the connection fails.
        CheckpointError: the model is not a safetensors checkpoint, or contradicts itself.
    """
    from huggingface_hub import snapshot_download

    with hub_errors("read", model), progress_bars(shown=False):
        folder = Path(snapshot_download(model.repo, revision=model.revision, allow_patterns=[CONFIG, RECORD, *INDICES]))
        commit = folder.name
        sizes = _file_sizes(HubId(model.repo, commit))
    try:
        if sizes is None:
            cached = {str(f.relative_to(folder).as_posix()): f.stat().st_size for f in folder.rglob("*") if f.is_file()}
            local = replace(open_checkpoint(folder), title=str(model))
            return RemoteModel(model, commit, folder, cached, local, is_cached=True)
        with hub_errors("read", model):
            checkpoint = open_folder(Folder(folder, frozenset(sizes), partial(_open_file, model, sizes)))
    except HubError:
        raise
    except CheckpointError as error:  # show the model's name instead of the path in the cache
        cached_only = " in the cache (the Hub was not contacted)" if sizes is None else ""
        message = error.message.replace(f"{folder}/", "").replace(str(folder), str(model))
        raise CheckpointError(f"`{model}`{cached_only}: {message}", hint=error.hint) from error
    return RemoteModel(model, commit, folder, sizes, replace(checkpoint, title=str(model)), is_cached=False)


def read_config(model: HubId) -> dict[str, Any]:
    """Return the config of a model on the Hub; nothing else is downloaded.

    Raises:
        HubError: the model cannot be read, or has no config.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    with hub_errors("read", model), progress_bars(shown=False):
        try:
            file = hf_hub_download(model.repo, CONFIG, revision=model.revision)
        except RemoteEntryNotFoundError as error:
            raise HubError(f"`{model}` has no {CONFIG}") from error
    return read_json(Path(file))


def _file_sizes(model: HubId) -> dict[str, int] | None:
    """Return the sizes of a commit's files in bytes; None if the Hub cannot be reached and only the cache can serve."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        return None
    try:
        entries = list(HfApi().list_repo_tree(model.repo, revision=model.revision, recursive=True))
    except HfHubHTTPError as error:
        if error.response.status_code < _SERVER_ERROR:
            raise
        return None
    except transport_error():  # no response
        return None
    return {entry.path: entry.size for entry in entries if hasattr(entry, "size")}


def _open_file(model: HubId, sizes: Mapping[str, int], file: Path) -> AbstractContextManager[BinaryIO]:
    """Open a file from the cache, or one on the Hub, which downloads only the bytes that are read."""
    from huggingface_hub import HfFileSystem

    if file.is_file():
        return open_file(file)
    path = f"{model.repo}@{file.parent.name}/{file.name}"
    stream: AbstractContextManager[BinaryIO] = HfFileSystem().open(
        path, "rb", block_size=_FIRST_BYTES, cache_type="readahead", size=sizes[file.name]
    )
    return stream


def open_named(checkpoint: str | Path) -> Checkpoint:
    """Read the headers of a checkpoint, given by path or, if no such path exists, by Hub id.

    Raises:
        CheckpointError: the checkpoint does not exist or is invalid.
        HubError: the model does not exist on the Hub, access is denied, or the connection fails.
    """
    path = Path(checkpoint)
    model = None if path.exists() else parse_hub_id(str(checkpoint))
    return open_checkpoint(path) if model is None else open_remote(model).checkpoint


def download(model: RemoteModel, more: Collection[str] = ()) -> Checkpoint:
    """Download the files that widening reads, unless they are cached, and open the local copy.

    Args:
        model: the model on the Hub.
        more: names of further files to download.

    Raises:
        HubError: a file cannot be downloaded.
    """
    from huggingface_hub import snapshot_download

    if not model.is_cached:
        patterns = [glob.escape(name) for name in model.needed(more)]
        with hub_errors("download", model.id), progress_bars(shown=sys.stderr.isatty()):
            snapshot_download(model.id.repo, revision=model.commit, allow_patterns=patterns)
    return replace(open_checkpoint(model.folder), title=str(model.id))


def read_card(model: HubId) -> str | None:
    """Return the content of a model card; None if the model has none.

    Raises:
        HubError: the model cannot be read.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    with hub_errors("read the card of", model), progress_bars(shown=False):
        try:
            file = hf_hub_download(model.repo, _CARD, revision=model.revision)
        except RemoteEntryNotFoundError:
            return None
        return read_text(Path(file))

"""Reading checkpoints on the Hub: headers with range requests, whole files only when they are needed."""

from __future__ import annotations

import glob
import itertools
import sys
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any, BinaryIO, TypeVar, cast

from mupscale_cli.checkpoints.config import CONFIG
from mupscale_cli.checkpoints.digests import sha256
from mupscale_cli.checkpoints.fates import RECORD
from mupscale_cli.checkpoints.formats.base import Folder
from mupscale_cli.checkpoints.header import open_file
from mupscale_cli.checkpoints.hub.bars import progress_bars
from mupscale_cli.checkpoints.hub.failures import hub_errors, transport_error
from mupscale_cli.checkpoints.hub.ids import HubId, parse_hub_id, stated_sha256
from mupscale_cli.checkpoints.json_files import read_json
from mupscale_cli.checkpoints.libraries import CONFIGS
from mupscale_cli.checkpoints.modules import MODULES
from mupscale_cli.checkpoints.pipelines import refuse_pipeline
from mupscale_cli.checkpoints.reading import INDICES, Checkpoint, open_checkpoint, open_folder
from mupscale_cli.errors import CheckpointError, HubError, OtherFormatError
from mupscale_cli.files import read_text
from mupscale_cli.text import shown

Answer = TypeVar("Answer")
_MAX_SECONDS = 120  # for the list of files, and for config, record and index
_MAX_FILES = 100_000
_FIRST_BYTES = 1 << 16  # size of the first request; most headers fit, longer ones take a second request
_SERVER_ERROR = 500
_CARD = "README.md"
_TORCH = "pytorch_model*.bin"


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
        own = {file.name for file in self.checkpoint.plan_files() if file.fate != "left behind"}
        return tuple(sorted(self.sizes.keys() & {*own, RECORD, *more}))

    def missing(self, more: Collection[str] = ()) -> dict[Path, int]:
        """Return the needed files that still have to be downloaded: their paths in the cache, and their bytes."""
        files = {self.folder / name: self.sizes[name] for name in self.needed(more)}
        return {file: num_bytes for file, num_bytes in files.items() if not file.exists()}


def open_remote(model: HubId) -> RemoteModel:
    """Read config, index and headers of a model on the Hub, but no tensor data.

    Raises:
        HubError: the model does not exist, access is denied, or the connection fails.
        CheckpointError: the model is not a safetensors checkpoint, or contradicts itself.
    """
    from huggingface_hub import snapshot_download

    with hub_errors("read", model), progress_bars(shown=False):
        small = ["*config.json", MODULES, *CONFIGS, RECORD, *INDICES]  # and files like generation_config.json
        folder = Path(
            _in_time(model, lambda: snapshot_download(model.repo, revision=model.revision, allow_patterns=small))
        )
        commit = folder.name
        sizes = _in_time(model, lambda: _file_sizes(HubId(model.repo, commit)))
    refuse_pipeline(str(model), sizes or (), is_remote=True)
    try:
        if sizes is None:
            local = replace(open_checkpoint(folder), title=str(model))
            cached = {name: size for name, size in local.sizes.items() if size is not None}
            return RemoteModel(model, commit, folder, cached, local, is_cached=True)
        with hub_errors("read", model):
            checkpoint = open_folder(Folder(folder, frozenset(sizes), partial(_open_file, model, folder, sizes)))
    except HubError:
        raise
    except CheckpointError as error:  # show the model's name instead of the path in the cache
        cached_only = " in the cache (the Hub was not contacted)" if sizes is None else ""
        message = error.message.replace(f"{folder}/", "").replace(str(folder), str(model))
        kind = type(error) if sizes is not None else CheckpointError  # a part of a repository does not tell what it is
        if sizes and isinstance(error, OtherFormatError) and any(fnmatchcase(name, _TORCH) for name in sizes):
            revision = f" --revision {model.revision}" if model.revision else ""
            raise kind(
                f"`{model}` has weights of torch, not safetensors; mupscale reads them only from a local folder",
                hint=f"download it first: `hf download {model.repo}{revision} --local-dir OUT`, and pass OUT",
            ) from error
        said = message.startswith(f"`{model}` ") and not cached_only
        raise kind(message if said else f"`{model}`{cached_only}: {message}", hint=error.hint) from error
    checkpoint = replace(checkpoint, title=str(model), sizes=sizes)
    return RemoteModel(model, commit, folder, sizes, checkpoint, is_cached=False)


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


def _in_time(model: HubId, request: Callable[[], Answer]) -> Answer:
    """Return the answer to a request for lists and small files.

    The client limits the time between two bytes, not the number of pages or the time of an answer.

    Raises:
        HubError: there is no complete answer in time.
    """
    answers: Queue[tuple[Answer | None, BaseException | None]] = Queue()

    def run() -> None:
        try:
            answers.put((request(), None))
        except BaseException as error:  # noqa: BLE001 (raised again in the thread that waits)
            answers.put((None, error))

    Thread(target=run, daemon=True).start()
    try:
        answer, error = answers.get(timeout=_MAX_SECONDS)
    except Empty:
        raise HubError(
            f"cannot read `{model}`: the Hub did not finish its answer within {_MAX_SECONDS} s",
            hint="try again, or check that HF_ENDPOINT is a Hub",
        ) from None
    if error is not None:
        raise error
    return cast("Answer", answer)


def _file_sizes(model: HubId) -> dict[str, int] | None:
    """Return the sizes of a commit's files in bytes; None if the Hub cannot be reached and only the cache can serve."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        return None
    try:
        tree = HfApi().list_repo_tree(model.repo, revision=model.revision, recursive=True)
        entries = list(itertools.islice(tree, _MAX_FILES + 1))
    except HfHubHTTPError as error:
        if error.response.status_code < _SERVER_ERROR:
            raise
        return None
    except transport_error():  # no response
        return None
    except (TypeError, AttributeError) as error:
        raise HubError(f"cannot read `{model.repo}`: the Hub's list of files is malformed: {error}") from error
    if len(entries) > _MAX_FILES:
        raise HubError(f"`{model.repo}` has more than {_MAX_FILES} files")
    sizes = {entry.path: entry.size for entry in entries if hasattr(entry, "size")}
    for path, size in sizes.items():
        if not isinstance(path, str) or type(size) is not int or size < 0:
            raise HubError(f"cannot read `{model.repo}`: the Hub gives {shown(path)} the size {shown(size)}")
    return sizes


def _open_file(model: HubId, folder: Path, sizes: Mapping[str, int], file: Path) -> AbstractContextManager[BinaryIO]:
    """Open a file from the cache, or one on the Hub, which downloads only the bytes that are read."""
    from huggingface_hub import HfFileSystem

    if file.is_file():
        return open_file(file)
    name = file.relative_to(folder).as_posix()
    path = f"{model.repo}@{folder.name}/{name}"
    stream: AbstractContextManager[BinaryIO] = HfFileSystem().open(
        path, "rb", block_size=_FIRST_BYTES, cache_type="readahead", size=sizes[name]
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
    for name in model.needed(more):
        stated = stated_sha256(file := model.folder / name)
        if stated is not None and sha256(file) != stated:
            raise HubError(
                f"`{name}` of `{model.id}` is damaged: its SHA-256 is not {stated}, as the Hub states",
                hint=f"remove `{file.resolve()}` to download it again",
            )
    return replace(open_checkpoint(model.folder), title=str(model.id), sizes=model.sizes)


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

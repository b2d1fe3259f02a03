"""A checkpoint as it lies on disk: its tensors, its config, what else belongs to it. Headers only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from mupscale_cli.checkpoints.config import CONFIG
from mupscale_cli.checkpoints.header import Header, StoredTensor, read_header
from mupscale_cli.checkpoints.json_files import is_file_name, parse_object, read_json
from mupscale_cli.dtypes import TensorSpec
from mupscale_cli.errors import CheckpointError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
RECORD = "mupscale.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")
# Text that a tokenizer, a processor or generation reads; what describes the narrow model itself
# (its card, its training state) is not true of the wide one and stays behind.
_CARRIED_SUFFIXES = (".json", ".txt", ".model", ".jinja", ".py", ".tiktoken", ".vocab", ".merges", ".spm")
_CARRIED_NAMES = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY")
_NOT_CARRIED = (
    CONFIG,
    INDEX,
    RECORD,
    "trainer_state.json",
    "all_results.json",
    "train_results.json",
    "eval_results.json",
)


@dataclass(frozen=True)
class Checkpoint:
    """A safetensors checkpoint; nothing of its data is in memory.

    Attributes:
        path: the file or directory.
        is_file: whether it was given as one safetensors file.
        files: the safetensors files, in the order of the index.
        tensors: every tensor by name, in the order of files and of data.
        config: the content of config.json, None where there is none.
        metadata: of the first file's header.
        title: what it was asked for by, where that is not its path.
    """

    path: Path
    is_file: bool
    files: tuple[Path, ...]
    tensors: Mapping[str, StoredTensor]
    config: dict[str, Any] | None
    metadata: Mapping[str, str]
    title: str = ""

    @property
    def shown(self) -> str:
        """What messages call it."""
        return self.title or str(self.path)

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        return tuple(tensor.spec for tensor in self.tensors.values())

    @property
    def num_bytes(self) -> int:
        return sum(spec.num_bytes for spec in self.specs)

    @cached_property
    def record(self) -> dict[str, Any] | None:
        """What `mupscale widen` noted when it made this checkpoint; None if it did not."""
        if self.is_file:
            text = self.metadata.get("mupscale")
            return parse_object(text, self.path) if text else None
        file = self.path / RECORD
        return read_json(file) if file.is_file() else None

    @property
    def carried_files(self) -> tuple[Path, ...]:
        """Files of a directory that a tokenizer or generation needs beside the weights.

        Raises:
            CheckpointError: one is a link out of the directory.
        """
        return tuple(own_file(file) for file in self._other_files if is_carried(file.name))

    @property
    def left_files(self) -> tuple[Path, ...]:
        """Files of a directory that are neither weights nor carried along."""
        return tuple(file for file in self._other_files if not is_carried(file.name))

    @cached_property
    def _other_files(self) -> tuple[Path, ...]:
        if self.is_file:
            return ()
        own = {*self.files, self.path / CONFIG, self.path / INDEX, self.path / RECORD}
        return tuple(sorted(file for file in self.path.iterdir() if file.is_file() and file not in own))


def own_file(file: Path, root: Path | None = None) -> Path:
    """A file of a checkpoint whose content is copied, which must be the checkpoint's own.

    A folder may come from anywhere, and a link in it may lead to what is nobody's business but would be published
    with the output. Links within the folder are fine, and those of the Hub's cache, to its `blobs` two folders up.
    Weights may be links to anywhere: nothing that is not a tensor is taken from them.

    Args:
        file: whose content is copied.
        root: the checkpoint's folder; the file's own if not given.

    Raises:
        CheckpointError: it is a link that leads elsewhere.
    """
    folder, real = (root or file.parent).resolve(), file.resolve()
    if real.is_relative_to(folder) or real.parent == folder.parent.parent / "blobs":
        return file
    raise CheckpointError(
        f"`{file}` is a link to `{real}`, which is not part of the checkpoint, and would be copied into the output",
        hint="put the file itself in its place, or remove the link",
    )


def is_carried(name: str) -> bool:
    """Whether a file of a directory belongs to what a tokenizer or generation needs beside the weights."""
    file = PurePosixPath(name)
    if file.name in _NOT_CARRIED or file.name.startswith(".") or file.name.endswith(".index.json"):
        return False
    return file.suffix in _CARRIED_SUFFIXES or file.name.split(".")[0].upper() in _CARRIED_NAMES


@dataclass(frozen=True)
class Folder:
    """A model directory, whose weights may be elsewhere.

    Attributes:
        path: where at least its JSON files are.
        names: of all its files.
        header: how the header of one of its weight files is read.
    """

    path: Path
    names: frozenset[str]
    header: Callable[[Path], Header] = read_header


def open_checkpoint(path: Path) -> Checkpoint:
    """Read the headers of a checkpoint: a safetensors file, or a directory of `save_pretrained`.

    Raises:
        CheckpointError: it is missing, is no safetensors checkpoint, or contradicts itself.
    """
    if path.is_dir():
        return open_folder(Folder(path, frozenset(file.name for file in path.iterdir() if file.is_file())))
    if not path.is_file():
        raise CheckpointError(
            f"there is no checkpoint at `{path}`",
            hint="give a .safetensors file, a model directory, or a Hub id like org/name",
        )
    _refuse_pickle(path)
    header = read_header(path)
    config = _config_beside(path)
    content = read_json(own_file(config)) if config.is_file() else None
    return Checkpoint(path, True, (path,), merged((header,), path), content, header.metadata)


def open_folder(folder: Folder) -> Checkpoint:
    """Read the headers of a directory of `save_pretrained`, wherever its weights are.

    Raises:
        CheckpointError: it is no safetensors checkpoint, or contradicts itself.
    """
    path = folder.path
    files = weight_files(folder)
    headers = tuple(folder.header(file) for file in files)
    tensors = merged(headers, path)
    if files[0].name != WEIGHTS and INDEX in folder.names:
        _check_index(path / INDEX, tensors)
    content = read_json(own_file(path / CONFIG)) if CONFIG in folder.names else None
    return Checkpoint(path, False, files, tensors, content, headers[0].metadata)


def merged(headers: Iterable[Header], path: Path) -> dict[str, StoredTensor]:
    """The tensors of several files by name.

    Raises:
        CheckpointError: there are none, or two of a name.
    """
    tensors: dict[str, StoredTensor] = {}
    for header in headers:
        for tensor in header.tensors:
            name = tensor.spec.name
            if name in tensors:
                raise CheckpointError(
                    f"`{name}` is both in `{tensors[name].file.name}` and in `{tensor.file.name}`",
                    hint="the shards do not belong together; save the checkpoint again",
                )
            tensors[name] = tensor
    if not tensors:
        raise CheckpointError(f"`{path}` holds no tensors")
    return tensors


def _config_beside(file: Path) -> Path:
    """The config of a single file: `NAME.config.json`, as widening a file writes it, or config.json."""
    own = file.with_suffix(".config.json")
    return own if own.is_file() else file.parent / CONFIG


def weight_files(folder: Folder) -> tuple[Path, ...]:
    """The files that hold a directory's weights: one, or those that its index names.

    Raises:
        CheckpointError: there are none as safetensors, or some are missing.
    """
    path, names = folder.path, folder.names
    if WEIGHTS in names:
        return (path / WEIGHTS,)
    if INDEX in names:
        shards = dict.fromkeys(weight_map(path / INDEX).values())
        missing = [shard for shard in shards if shard not in names]
        if missing:
            raise CheckpointError(
                f"`{path / INDEX}` names `{missing[0]}`, which is not there "
                f"({len(missing)} of {len(shards)} shards are missing)",
                hint="download the missing shards, or save the checkpoint again",
            )
        return tuple(path / shard for shard in shards)
    found = sorted(name for name in names if name.endswith(".safetensors") and "/" not in name)
    if len(found) == 1:
        return (path / found[0],)
    if found:
        raise CheckpointError(
            f"`{path}` has {len(found)} safetensors files, but neither `{WEIGHTS}` nor `{INDEX}`",
            hint="give one of the files by name, or save the model with its index",
        )
    for name in sorted(names):
        _refuse_pickle(path / name)
    raise CheckpointError(f"`{path}` holds no safetensors weights")


def _refuse_pickle(file: Path) -> None:
    if file.suffix in _PICKLES:
        raise CheckpointError(
            f"`{file}` is a pickle or another format that is not safetensors",
            hint="convert it first: load it with transformers and call `save_pretrained(DIR)`, or "
            "`safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'model.safetensors')`",
        )


def weight_map(index: Path) -> dict[str, str]:
    """Which file holds each tensor, as an index says.

    Raises:
        CheckpointError: it does not say it, or names what is not beside it.
    """
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(file, str) for file in found.values()):
        raise CheckpointError(f"`{index}` has no `weight_map` from tensor to file")
    for file in set(found.values()):
        if not is_file_name(file) or not file.endswith(".safetensors"):
            raise CheckpointError(f"`{index}` names `{file}`, which is not a safetensors file beside it")
    return found


def _check_index(index: Path, tensors: Mapping[str, StoredTensor]) -> None:
    said = weight_map(index)
    for name, file in said.items():
        if name not in tensors or tensors[name].file.name != file:
            raise CheckpointError(
                f"`{index}` says that `{name}` is in `{file}`, but it is not",
                hint="index and shards do not belong together; save the checkpoint again",
            )
    extra = next((name for name in tensors if name not in said), None)
    if extra:
        raise CheckpointError(
            f"`{tensors[extra].file}` holds `{extra}`, which `{index.name}` does not name",
            hint="index and shards do not belong together; save the checkpoint again",
        )

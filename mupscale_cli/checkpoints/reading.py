"""Opening checkpoints: tensors, config and other files. Reads only headers and JSON, no tensor data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from mupscale_cli.checkpoints.config import check_limits
from mupscale_cli.checkpoints.formats.base import Folder, WeightsFormat
from mupscale_cli.checkpoints.formats.safetensors import Safetensors
from mupscale_cli.checkpoints.header import METADATA_KEY, StoredTensor
from mupscale_cli.checkpoints.json_files import parse_object, read_json
from mupscale_cli.dtypes import TensorSpec
from mupscale_cli.errors import CheckpointError
from mupscale_cli.files import Identity, identities
from mupscale_cli.libraries import CONFIGS, Library, config_beside, library_of
from mupscale_cli.text import bytes_text

RECORD = "mupscale.json"
FORMATS: tuple[WeightsFormat, ...] = (Safetensors(),)  # the first one that recognizes a checkpoint reads it
SUFFIXES = tuple(suffix for each in FORMATS for suffix in each.suffixes)
INDICES = tuple(name for each in FORMATS for name in each.indices)
# Files that tokenizers, processors and generation read. Files that describe the narrow model itself, such as its card
# and its training state, would be wrong for the wide one and are not copied.
_CARRIED_SUFFIXES = (".json", ".txt", ".model", ".jinja", ".py", ".tiktoken", ".vocab", ".merges", ".spm")
_CARRIED_NAMES = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY")
_MAX_CARRIED_BYTES = 1 << 30  # the largest vocabularies take a twentieth
_NOT_CARRIED = (
    *CONFIGS,
    *INDICES,
    RECORD,
    "trainer_state.json",
    "all_results.json",
    "train_results.json",
    "eval_results.json",
)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose headers have been read; tensor data stay on disk.

    Attributes:
        path: file or directory.
        is_file: whether the checkpoint is a single weight file.
        files: weight files in the order of the index.
        tensors: all tensors by name, in file and data order.
        config: content of config.json, or of the config file of another library; None if there is none.
        metadata: metadata of the first file.
        title: name that the user passed if it is not the path, for instance a Hub id.
        opened: identities of its files before any of them was read; empty for remote files.
    """

    path: Path
    is_file: bool
    files: tuple[Path, ...]
    tensors: Mapping[str, StoredTensor]
    config: dict[str, Any] | None
    metadata: Mapping[str, str]
    title: str = ""
    opened: Mapping[Path, Identity | None] = field(default_factory=dict)

    @property
    def display_name(self) -> str:
        """The name of the checkpoint in messages."""
        return self.title or str(self.path)

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        return tuple(tensor.spec for tensor in self.tensors.values())

    @property
    def num_bytes(self) -> int:
        return sum(spec.num_bytes for spec in self.specs)

    @cached_property
    def record(self) -> dict[str, Any] | None:
        """The record of `mupscale widen`; None if it did not write this checkpoint."""
        if self.is_file:
            text = self.metadata.get(METADATA_KEY)
            return parse_object(text, self.path) if text else None
        file = self.path / RECORD
        return read_json(file) if file.is_file() else None

    @property
    def library(self) -> Library:
        """The library that the checkpoint is for."""
        return library_of(self.config)

    @property
    def config_file(self) -> Path | None:
        """The file that holds the config; None if there is none."""
        return (
            config_path(self.path)
            if self.is_file
            else self.path / self.library.config
            if self.config is not None
            else None
        )

    @property
    def carried_files(self) -> tuple[Path, ...]:
        """Files that tokenizers, processors and generation need, which are copied to the output.

        Raises:
            CheckpointError: a file is a link that leads out of the directory.
        """
        return tuple(require_own_file(file) for file in self._other_files if is_carried(file.name))

    @property
    def skipped_files(self) -> tuple[Path, ...]:
        """Files that are neither weights nor copied to the output."""
        return tuple(file for file in self._other_files if not is_carried(file.name))

    @cached_property
    def _other_files(self) -> tuple[Path, ...]:
        if self.is_file:
            return ()
        own = {*self.files, *(self.path / name for name in (*CONFIGS, RECORD, *INDICES))}
        return tuple(sorted(file for file in self.path.iterdir() if file.is_file() and file not in own))

    def read_side_files(self, names: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Return the content of JSON files of the folder by name, as far as it has them; a single file has none.

        Raises:
            CheckpointError: a file is not a JSON object, or is a link that leads out of the directory.
        """
        files = {name: self.path / name for name in sorted(names)} if not self.is_file else {}
        return {name: read_json(require_own_file(file)) for name, file in files.items() if file.is_file()}


def require_own_file(file: Path, root: Path | None = None) -> Path:
    """Return a file whose content will be copied, after checking that it belongs to the checkpoint.

    An untrusted folder could contain a link to a private file, which would then be published with the output. Links
    inside the folder are allowed, as are links of the Hub's cache to its `blobs` two folders up. Weight files may link
    anywhere, since only tensors are read from them.

    Args:
        file: file to copy.
        root: folder of the checkpoint. Default: the folder of the file.

    Raises:
        CheckpointError: the file is a link that leads out of the checkpoint.
    """
    folder, real = (root or file.parent).resolve(), file.resolve()
    if real.is_relative_to(folder) or real.parent == folder.parent.parent / "blobs":
        return file
    raise CheckpointError(
        f"`{file}` links to `{real}`, which is outside the checkpoint and would be copied into the output",
        hint="replace the link with the file itself, or remove it",
    )


def is_carried(name: str) -> bool:
    """Return whether tokenizers, processors or generation need a file, so that it is copied to the output."""
    file = PurePosixPath(name)
    if file.name in _NOT_CARRIED or file.name.startswith(".") or file.name.endswith(".index.json"):
        return False
    return file.suffix in _CARRIED_SUFFIXES or file.name.split(".")[0].upper() in _CARRIED_NAMES


def open_checkpoint(path: Path) -> Checkpoint:
    """Read the headers of a checkpoint: a weight file, or a directory written by `save_pretrained`.

    Raises:
        CheckpointError: the checkpoint does not exist, has an unsupported format, or contradicts itself.
    """
    if path.is_dir():
        opened = identities(_plain_files(path))
        return replace(open_folder(Folder(path, frozenset(file.name for file in opened))), opened=opened)
    if not path.is_file():
        raise _not_found(path)
    weights_format = next((each for each in FORMATS if each.recognizes(path)), None)
    if weights_format is None:
        raise _not_supported(path)
    config = config_path(path)
    opened = identities((path, *([config] if config else ())))
    weights = weights_format.read(Folder(path, frozenset()), (path,))
    content = read_json(require_own_file(config)) if config else None
    return _checked(Checkpoint(path, True, (path,), weights.tensors, content, weights.metadata, opened=opened))


def _checked(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint whose config asks for no more than its tensors show."""
    if checkpoint.config is not None:
        check_limits(checkpoint.config, checkpoint.specs)
    return checkpoint


def _plain_files(folder: Path) -> Iterator[Path]:
    """Yield the files of a model directory.

    Raises:
        CheckpointError: reading a file would not end (a pipe, a device), or one beside the weights is too large.
    """
    for file in folder.iterdir():
        if file.is_file():
            if is_carried(file.name) and file.stat().st_size > _MAX_CARRIED_BYTES:
                raise CheckpointError(
                    f"`{file}` is larger than {bytes_text(_MAX_CARRIED_BYTES)}, the limit for files beside the weights",
                    hint="move it out of the model's folder",
                )
            yield file
        elif file.exists() and (not file.is_dir() or file.suffix == ".json"):
            raise CheckpointError(f"`{file}` is not a plain file", hint="move it out of the model's folder")


def open_folder(folder: Folder) -> Checkpoint:
    """Read the headers of a model directory; its weight files may be remote.

    Raises:
        CheckpointError: the directory contains no weights in a supported format, or contradicts itself.
    """
    path = folder.path
    for each in FORMATS:
        if files := each.files(folder):
            weights = each.read(folder, files)
            config = config_beside(files[0].name, folder.names)
            content = read_json(require_own_file(path / config)) if config else None
            return _checked(Checkpoint(path, False, files, weights.tensors, content, weights.metadata))
    for name in sorted(folder.names):
        if not any(each.recognizes(path / name) for each in FORMATS):
            raise _not_supported(path / name)
    raise CheckpointError(f"`{path}` contains no safetensors weights")


def config_path(file: Path) -> Path | None:
    """Return the config of a single file: `NAME.config.json`, which widening writes, or else config.json beside it.

    Other libraries have other names for it. None if there is no config.
    """
    own = (file.with_name(f"{file.stem}.{name}") for name in CONFIGS)
    beside = config_beside(file.name, [name for name in CONFIGS if (file.parent / name).exists()])
    return next((path for path in own if path.is_file()), file.parent / beside if beside else None)


def _not_found(path: Path) -> CheckpointError:
    """Return the error for a path without a checkpoint, which a killed run may have set aside."""
    from mupscale_cli.checkpoints.staging import set_aside  # only needed here

    usual = "pass a .safetensors file, a model directory, or a Hub id like org/name"
    found = set_aside(path)
    interrupted = f"a run was killed while it replaced it; its files are in `{found}`, and widening to it restores them"
    return CheckpointError(f"no checkpoint at `{path}`", hint=interrupted if found else usual)


def _not_supported(file: Path) -> CheckpointError:
    return CheckpointError(
        f"`{file}` is a pickle or another format, not safetensors",
        hint="convert it first: load it with transformers and call `save_pretrained(DIR)`, or "
        "`safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'model.safetensors')`",
    )

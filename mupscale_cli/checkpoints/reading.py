"""A checkpoint as it lies on disk: its tensors, its config, what else belongs to it. Headers only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from mupscale_cli.checkpoints.config import CONFIG
from mupscale_cli.checkpoints.formats.base import Folder, WeightsFormat
from mupscale_cli.checkpoints.formats.safetensors import Safetensors
from mupscale_cli.checkpoints.header import METADATA_KEY, StoredTensor
from mupscale_cli.checkpoints.json_files import parse_object, read_json
from mupscale_cli.dtypes import TensorSpec
from mupscale_cli.errors import CheckpointError

RECORD = "mupscale.json"
FORMATS: tuple[WeightsFormat, ...] = (Safetensors(),)  # in the order in which they are asked
SUFFIXES = tuple(suffix for each in FORMATS for suffix in each.suffixes)
INDICES = tuple(name for each in FORMATS for name in each.indices)
# Text that a tokenizer, a processor or generation reads; what describes the narrow model itself
# (its card, its training state) is not true of the wide one and stays behind.
_CARRIED_SUFFIXES = (".json", ".txt", ".model", ".jinja", ".py", ".tiktoken", ".vocab", ".merges", ".spm")
_CARRIED_NAMES = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY")
_NOT_CARRIED = (
    CONFIG,
    *INDICES,
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
            text = self.metadata.get(METADATA_KEY)
            return parse_object(text, self.path) if text else None
        file = self.path / RECORD
        return read_json(file) if file.is_file() else None

    @property
    def carried_files(self) -> tuple[Path, ...]:
        """Files of a directory that a tokenizer or generation needs beside the weights.

        Raises:
            CheckpointError: one is a link out of the directory.
        """
        return tuple(require_own_file(file) for file in self._other_files if is_carried(file.name))

    @property
    def skipped_files(self) -> tuple[Path, ...]:
        """Files of a directory that are neither weights nor carried along."""
        return tuple(file for file in self._other_files if not is_carried(file.name))

    @cached_property
    def _other_files(self) -> tuple[Path, ...]:
        if self.is_file:
            return ()
        own = {*self.files, *(self.path / name for name in (CONFIG, RECORD, *INDICES))}
        return tuple(sorted(file for file in self.path.iterdir() if file.is_file() and file not in own))


def require_own_file(file: Path, root: Path | None = None) -> Path:
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


def open_checkpoint(path: Path) -> Checkpoint:
    """Read the headers of a checkpoint: a weight file, or a directory of `save_pretrained`.

    Raises:
        CheckpointError: it is missing, is of no known format, or contradicts itself.
    """
    if path.is_dir():
        return open_folder(Folder(path, frozenset(file.name for file in path.iterdir() if file.is_file())))
    if not path.is_file():
        raise CheckpointError(
            f"there is no checkpoint at `{path}`",
            hint="give a .safetensors file, a model directory, or a Hub id like org/name",
        )
    found = next((each for each in FORMATS if each.recognizes(path)), None)
    if found is None:
        raise _not_supported(path)
    weights = found.read(Folder(path, frozenset()), (path,))
    config = _config_beside(path)
    content = read_json(require_own_file(config)) if config.is_file() else None
    return Checkpoint(path, True, (path,), weights.tensors, content, weights.metadata)


def open_folder(folder: Folder) -> Checkpoint:
    """Read the headers of a directory of `save_pretrained`, wherever its weights are.

    Raises:
        CheckpointError: it holds no weights of a known format, or contradicts itself.
    """
    path = folder.path
    for each in FORMATS:
        if files := each.files(folder):
            weights = each.read(folder, files)
            content = read_json(require_own_file(path / CONFIG)) if CONFIG in folder.names else None
            return Checkpoint(path, False, files, weights.tensors, content, weights.metadata)
    for name in sorted(folder.names):
        if not any(each.recognizes(path / name) for each in FORMATS):
            raise _not_supported(path / name)
    raise CheckpointError(f"`{path}` holds no safetensors weights")


def _config_beside(file: Path) -> Path:
    """The config of a single file: `NAME.config.json`, as widening a file writes it, or config.json."""
    own = file.with_suffix(".config.json")
    return own if own.is_file() else file.parent / CONFIG


def _not_supported(file: Path) -> CheckpointError:
    return CheckpointError(
        f"`{file}` is a pickle or another format that is not safetensors",
        hint="convert it first: load it with transformers and call `save_pretrained(DIR)`, or "
        "`safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'model.safetensors')`",
    )

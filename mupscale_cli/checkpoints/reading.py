"""Opening checkpoints: tensors, config and other files. Reads only headers and JSON, no tensor data."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

from mupscale_cli.checkpoints.config import check_limits, set_key
from mupscale_cli.checkpoints.containers.kinds import TORCH_FILE
from mupscale_cli.checkpoints.fates import (
    ADAPTER,
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    RECORD,
    Decision,
    PlannedFile,
    may_hold_weights,
    plan_files,
)
from mupscale_cli.checkpoints.formats.base import Folder, WeightsFormat
from mupscale_cli.checkpoints.formats.safetensors import Safetensors
from mupscale_cli.checkpoints.header import METADATA_KEY, ReadableTensor, StoredTensor
from mupscale_cli.checkpoints.json_files import parse_object, read_json
from mupscale_cli.checkpoints.layouts.opening import USUAL, Choice, Trained
from mupscale_cli.checkpoints.layouts.opening import open_file as open_trained_file
from mupscale_cli.checkpoints.layouts.opening import open_folder as open_trained_folder
from mupscale_cli.checkpoints.libraries import CONFIGS, Library, config_beside, library_of
from mupscale_cli.checkpoints.listing import list_files, require_own_file
from mupscale_cli.checkpoints.modules import Module, check_place, module_decisions, read_modules
from mupscale_cli.checkpoints.other_formats import UNKNOWN_FILE, Description, describe, describe_folder
from mupscale_cli.checkpoints.pipelines import refuse_pipeline
from mupscale_cli.dtypes import TensorSpec
from mupscale_cli.errors import CheckpointError, OtherFormatError
from mupscale_cli.files import Identity, identities
from mupscale_cli.text import listed

FORMATS: tuple[WeightsFormat, ...] = (Safetensors(),)  # the first one that recognizes a checkpoint reads it
SUFFIXES = tuple(suffix for each in FORMATS for suffix in each.suffixes)
INDICES = tuple(name for each in FORMATS for name in each.indices)
TORCH_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".tar")  # timm calls its files `.pth.tar`
_MAX_INSIDE = 5  # checkpoints in a message
_PEFT_CLASSES = {
    "CAUSAL_LM": "AutoPeftModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoPeftModelForSeq2SeqLM",
    "SEQ_CLS": "AutoPeftModelForSequenceClassification",
    "TOKEN_CLS": "AutoPeftModelForTokenClassification",
    "QUESTION_ANS": "AutoPeftModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoPeftModelForFeatureExtraction",
}


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
        sizes: size in bytes of every file of the folder, by its path in it, as `list_files` gives them; those of the
            weight file and its config for a single file.
        settings: keys of `config` that its file lacks or has with other values.
        modules: the modules of a sentence-transformers model; the first one is the transformer.
        trained: what a trainer's layout says; None for safetensors.
    """

    path: Path
    is_file: bool
    files: tuple[Path, ...]
    tensors: Mapping[str, ReadableTensor]
    config: dict[str, Any] | None
    metadata: Mapping[str, str]
    title: str = ""
    opened: Mapping[Path, Identity | None] = field(default_factory=dict)
    sizes: Mapping[str, int | None] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    modules: tuple[Module, ...] = ()
    trained: Trained | None = None

    def with_settings(self, settings: Mapping[str, Any]) -> Checkpoint:
        """Return the checkpoint with other values of config keys, which may be dotted; the file stays as it is.

        Raises:
            CheckpointError: a value asks for more than the tensors show.
        """
        if not settings:
            return self
        config = copy.deepcopy(self.config or {})
        for key, value in settings.items():
            set_key(config, key, value)
        return _checked(replace(self, config=config, settings={**self.settings, **settings}))

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

    @property
    def module_tensors(self) -> dict[str, Mapping[str, StoredTensor]]:
        """The tensors of each module, by its folder."""
        return {module.folder: module.tensors for module in self.modules}

    @cached_property
    def record(self) -> dict[str, Any] | None:
        """The record of `mupscale widen`; None if it did not write this checkpoint."""
        if self.is_file and self.trained is None:
            text = self.metadata.get(METADATA_KEY)
            return parse_object(text, self.path) if text else None
        file = self.record_file
        return read_json(file) if file.is_file() else None

    @property
    def form(self) -> dict[str, str]:
        """What the user said about its form."""
        return {} if self.trained is None else self.trained.choice.said

    @property
    def pointers(self) -> dict[str, str]:
        """Text files beside the container of a trainer's checkpoint that name it, by file name."""
        if self.trained is None or self.is_file or self.trained.path == self.path:
            return {}
        return dict(self.trained.layout.pointers(self.trained.path.name))

    @property
    def record_file(self) -> Path:
        """The file of the record of `mupscale widen`, unless a single safetensors file has it in its header."""
        return self.path.with_name(f"{self.path.stem}.{RECORD}") if self.is_file else self.path / RECORD

    @property
    def library(self) -> Library:
        """The library that the checkpoint is for."""
        own = None if self.trained is None else self.trained.layout.library
        return own or library_of(self.config)

    @property
    def config_file(self) -> Path | None:
        """The file that holds the config; None if there is none."""
        if self.trained is not None and self.trained.sizes is not None:
            return self.trained.config_file
        if self.is_file:
            return config_path(self.path)
        return self.path / self.library.config if self.library.config in self.sizes else None

    def plan_files(self, decided: Mapping[str, Decision] = MappingProxyType({})) -> tuple[PlannedFile, ...]:
        """Plan what becomes of every file when the checkpoint is widened.

        Args:
            decided: what becomes of files that the table of fates and the weights do not decide, by name.

        Raises:
            CheckpointError: a file to copy or to rewrite is too large, or is a link that leads out of the directory.
        """
        about = "weights" if self.trained is None else self.trained.layout.about
        own = {self.inner_name(file): Decision("widened", about) for file in self.files}
        own[self.library.index] = Decision("rewritten", "which file holds each tensor")
        if self.config_file is not None:
            own[self.config_file.name] = Decision("rewritten", "sizes of the model")
        if self.trained is not None:
            own |= self.trained.layout.progress_files(self.sizes)
        if self.sizes.keys() >= {ADAPTER_WEIGHTS, ADAPTER_CONFIG}:
            own |= {ADAPTER_WEIGHTS: Decision("widened", "adapter"), ADAPTER_CONFIG: Decision("rewritten", "adapter")}
        planned = plan_files(self.sizes, {**own, **module_decisions(self.modules, self.sizes), **decided})
        for file in planned:
            if file.fate in ("carried", "rewritten"):
                require_own_file(self.path / file.name, self.path)
        return planned

    @property
    def schedules(self) -> tuple[str, ...]:
        """The JSON files with the rates of a scheduler, by their path in the directory."""
        layout = None if self.trained is None or self.is_file else self.trained.layout
        return () if layout is None else layout.schedule_files(self.sizes)

    def inner_name(self, file: Path) -> str:
        """Return the path in the checkpoint's folder of a file of its weights; its name for a single file."""
        return file.name if self.is_file else file.relative_to(self.path).as_posix()

    @cached_property
    def files_beside(self) -> dict[str, Path]:
        """The files, by their path in the directory, that are copied or rewritten beside the config.

        Raises:
            CheckpointError: a file to copy is too large, or is a link that leads out of the directory.
        """
        config = () if self.config_file is None else (self.config_file.name,)
        own = {*config, self.library.config, self.library.index, ADAPTER_CONFIG}
        made = (file.name for file in self.plan_files() if file.fate in ("carried", "rewritten"))
        return {} if self.is_file else {name: self.path / name for name in made if name not in own}

    def read_side_files(self, names: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Return the content of JSON files of the folder by name, as far as it has them; a single file has none.

        Raises:
            CheckpointError: a file is not a JSON object, or is a link that leads out of the directory.
        """
        files = {name: self.path / name for name in sorted(names)} if not self.is_file else {}
        return {name: read_json(require_own_file(file, self.path)) for name, file in files.items() if file.is_file()}


def open_checkpoint(path: Path, choice: Choice = USUAL) -> Checkpoint:
    """Read the headers of a checkpoint: a weight file, a directory of `save_pretrained`, or what a trainer wrote.

    Args:
        path: the file or directory.
        choice: what the user says about its form.

    Raises:
        CheckpointError: the checkpoint does not exist, has an unsupported format, or contradicts itself.
    """
    choice = choice if choice.is_made else _recorded_choice(path)
    if path.is_dir():
        sizes = dict(list_files(path))
        refuse_pipeline(str(path), sizes)
        opened = identities(path / name for name, size in sizes.items() if size is not None)
        return replace(open_folder(Folder(path, _readable(sizes)), choice), opened=opened, sizes=sizes)
    if not path.is_file():
        raise _not_found(path)
    return _open_file(path, choice)


def _open_file(path: Path, choice: Choice) -> Checkpoint:
    if choice.is_made or (path.suffix in (*TORCH_SUFFIXES, "") and TORCH_FILE.recognizes(path)):
        trained = open_trained_file(path, choice)
        if trained is None:
            raise _has_another_form(path, choice, lambda other: _open_file(path, other))
        return _trained_file(path, trained)
    weights_format = next((each for each in FORMATS if each.recognizes(path)), None)
    description = describe(path)
    if weights_format is None or (path.suffix not in SUFFIXES and description.about != UNKNOWN_FILE.about):
        raise _not_supported(path, description)
    config = config_path(path)
    opened = identities((path, *([config] if config else ())))
    weights = weights_format.read(Folder(path, frozenset()), (path,))
    content = read_json(require_own_file(config)) if config else None
    sizes = {file.name: file.stat().st_size for file, known in opened.items() if known is not None}
    found = Checkpoint(path, True, (path,), weights.tensors, content, weights.metadata, opened=opened, sizes=sizes)
    return _checked(found)


def _recorded_choice(path: Path) -> Choice:
    """Return what the user said about the source of an output, which has the same form."""
    record = path / RECORD if path.is_dir() else path.with_name(f"{path.stem}.{RECORD}")
    source = read_json(record).get("source") if record.is_file() else None
    said = source.get("form") if isinstance(source, dict) else None
    return Choice(said.get("layout"), said.get("weights_key")) if isinstance(said, dict) else USUAL


def _trained_file(path: Path, trained: Trained) -> Checkpoint:
    config = config_path(path) if trained.sizes is None else trained.config_file
    opened = identities((path, *([config] if config else ())))
    content = trained.config or (read_json(require_own_file(config)) if config else None)
    sizes = {file.name: file.stat().st_size for file, known in opened.items() if known is not None}
    found = Checkpoint(path, True, (path,), trained.tensors, content, {}, opened=opened, sizes=sizes, trained=trained)
    return _checked(found)


def _checked(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint whose config asks for no more than its tensors show."""
    if checkpoint.config is not None:
        check_limits(checkpoint.config, checkpoint.specs)
    return checkpoint


def _readable(sizes: Mapping[str, int | None]) -> frozenset[str]:
    return frozenset(name for name, size in sizes.items() if size is not None)


def open_folder(folder: Folder, choice: Choice = USUAL) -> Checkpoint:
    """Read the headers of a model directory; its weight files may be remote if they are safetensors.

    Args:
        folder: the directory.
        choice: what the user says about its form.

    Raises:
        CheckpointError: the directory contains no weights in a supported format, or contradicts itself.
    """
    path = folder.path
    own = replace(folder, names=frozenset(name for name in folder.names if not ADAPTER.has(name)))
    for each in FORMATS if not choice.is_made else ():
        if files := each.files(own):
            weights = each.read(folder, files)
            config = config_beside(files[0].name, folder.names)
            content = read_json(require_own_file(path / config)) if config else None
            modules = read_modules(folder)
            return _checked(Checkpoint(path, False, files, weights.tensors, content, weights.metadata, modules=modules))
    if (trained := open_trained_folder(path, _local(path, own.names), choice)) is not None:
        config = config_beside(trained.path.name, folder.names) if trained.sizes is None else None
        sizes = trained.config or (read_json(require_own_file(path / config)) if config else None)
        return _checked(Checkpoint(path, False, trained.files, trained.tensors, sizes, {}, trained=trained))
    if choice.is_made:
        raise _has_another_form(path, choice, lambda other: open_folder(folder, other))
    if own != folder:
        raise _is_adapter(path)
    check_place(folder)
    if "model_index.json" not in folder.names and (checkpoints := _checkpoints_inside(folder)):
        raise CheckpointError(
            f"`{path}` contains no weights itself, but checkpoints, newest first: {listed(checkpoints, _MAX_INSIDE)}",
            hint=f"name one of them, for instance `{path / checkpoints[0]}`",
        )
    inside = {name.partition("/")[0] for name in folder.names} | {inner.name for inner in path.iterdir()}
    if odd := next((name for name in sorted(inside) if name.endswith(SUFFIXES) and (path / name).is_dir()), None):
        raise CheckpointError(f"`{path / odd}` is a folder, not a file", hint="download or save the checkpoint again")
    raise _not_supported(path, describe_folder(path, sorted(inside)))


def _has_another_form(path: Path, choice: Choice, reopen: Callable[[Choice], Checkpoint]) -> CheckpointError:
    """Return the error for a checkpoint that does not have the form that the user names.

    Args:
        path: the file or folder.
        choice: what the user says.
        reopen: opens it with another choice.

    Raises:
        CheckpointError: it has no other form either.
    """
    found = reopen(USUAL if choice.layout is None else replace(choice, layout=None))
    if found.trained is None:
        return CheckpointError(
            f"`{path}` contains safetensors, which have no layout and no key of weights",
            hint="omit `--layout` and `--weights-key`",
        )
    return CheckpointError(
        f"`{path}` has the layout `{found.trained.layout.name}`, not `{choice.layout}`", hint="omit `--layout`"
    )


def _local(path: Path, names: Iterable[str]) -> list[str]:
    """Return the names of files that are on this machine and may hold weights."""
    return [name for name in names if may_hold_weights(name) and (path / name).is_file()]


def _checkpoints_inside(folder: Folder) -> list[str]:
    """Return the subfolders that hold weights, those with the largest number at the end first."""
    weights = (PurePosixPath(name) for name in folder.names if name.endswith(SUFFIXES))
    parents = {str(name.parent) for name in weights if len(name.parts) == 2}

    def age(name: str) -> tuple[int, str]:
        number = re.search(r"(\d{1,18})$", name)
        return (int(number[1]) if number else -1, name)

    return sorted(parents, key=age, reverse=True)


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


def _is_adapter(folder: Path) -> CheckpointError:
    """Return the error for a folder that has an adapter and no model."""
    config = folder / ADAPTER_CONFIG
    task = read_json(require_own_file(config)).get("task_type") if config.is_file() else None
    auto_class = _PEFT_CLASSES.get(task, "AutoPeftModel") if isinstance(task, str) else "AutoPeftModel"
    merged = f"{auto_class}.from_pretrained({str(folder)!r}).merge_and_unload().save_pretrained('MERGED')"
    return OtherFormatError(
        f"`{folder}` contains an adapter, not a model",
        hint=f'merge it into its base model first: `python -c "from peft import {auto_class}; {merged}"`, '
        "and widen MERGED; or widen its base model with `--adapter`",
    )


def _not_supported(path: Path, found: Description) -> CheckpointError:
    return OtherFormatError(f"`{path}` {found.predicate}, not weights that can be widened", hint=found.hint)

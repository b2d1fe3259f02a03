"""An optimizer's state as it lies on disk: found, read by header, widened, written back in kind."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol

from mupscale_cli.checkpoints.digests import (
    TensorDigest,
    complete,
    files_digest,
    safetensors_digest,
    tensor_digests,
    tensors_digest,
)
from mupscale_cli.checkpoints.header import Stored, StoredTensor, read_header
from mupscale_cli.checkpoints.reading import Checkpoint, merged, own_file, weight_map
from mupscale_cli.checkpoints.rows import RowReader
from mupscale_cli.checkpoints.staging import write_json
from mupscale_cli.engine.ranks import ALONE, Ranks
from mupscale_cli.errors import CheckpointError
from mupscale_cli.optimizers.state_plan import ParameterNames, Policy, StateEntry, plan_state
from mupscale_cli.plan import Plan, Shard, TensorPlan, split_into_shards

# What trainers call their optimizer's state, the most telling first.
_FILES = (
    "optimizer.safetensors",
    "optimizer.safetensors.index.json",
    "optimizer.pt",
    "optimizer.bin",
    "optimizer.pth",
    "optim.pt",
)
_FOLDERS = ("optimizer", "optim", "optimizer_0")
# What the Trainer of transformers resumes from beside it: position in the data and random numbers do not depend on
# the width, the scheduler does.
_COPIED = ("trainer_state.json", "rng_state*.pth", "scaler.pt")
SCHEDULER = "scheduler.pt"
FLAT_PREFIXES = ("optimizer.state.", "state.", "optimizer.", "")
Progress = Callable[[int], None]


class OptimizerSource(Protocol):
    """An optimizer's state of one format; nothing of its data is in memory."""

    @property
    def path(self) -> Path:
        """The file or folder."""

    @property
    def num_bytes(self) -> int:
        """Of tensor data."""

    @property
    def stored(self) -> Mapping[str, Stored]:
        """Where its tensors are, by their names."""

    @property
    def content(self) -> Any:
        """What it holds, nested, with blank tensors; None where it holds nothing but tensors."""

    def digest(self) -> str:
        """The hash of its tensors, which reads all of them.

        Raises:
            CheckpointError: it cannot be read.
        """

    def widen(self, plan: Plan, policy: Policy, max_shard_bytes: int | None) -> WideState:
        """Plan the widened state; safetensors in files of at most so many bytes, None for a single one."""


@dataclass(frozen=True)
class Writing:
    """How a state is written.

    Attributes:
        directory: where to.
        name: of the file or folder.
        progress: called with the bytes just written.
        allow_nonfinite: copy NaNs and infinities, and count them.
        ranks: the processes that share the work.
    """

    directory: Path
    name: str
    progress: Progress = lambda _: None
    allow_nonfinite: bool = False
    ranks: Ranks = ALONE


@dataclass(frozen=True)
class StateFile:
    """A state that was written.

    Attributes:
        name: of the file or folder that it can be opened by.
        nonfinite: how many NaNs and infinities every tensor of the source holds, those that hold some.
        source_digest: the hash of the source's tensors, of those that were read.
        digest: that of what was written.
    """

    name: str
    nonfinite: dict[str, int]
    source_digest: str
    digest: str


@dataclass(frozen=True)
class WideState:
    """A widened state that is planned and not written.

    Attributes:
        tensors: how each of its tensors is made; the targets are named as the written file has them.
        stored: where the sources are, by name.
        write: writes it; None but for the first process.
        about: what there is to know of it, for the record.
        groups: of each wide group, the narrow group that it came from and the factor of its learning rate.
        copied: entries of the file that were copied as they are.
        content: what it holds, nested, with blank tensors; None where it holds nothing but tensors.
    """

    tensors: tuple[TensorPlan, ...]
    stored: Mapping[str, Stored]
    write: Callable[[Writing], StateFile | None]
    about: dict[str, Any]
    groups: tuple[tuple[int, float], ...] = ()
    copied: tuple[str, ...] = ()
    content: Any = None

    @property
    def num_bytes(self) -> int:
        """Of tensor data."""
        return sum(tensor.target.num_bytes for tensor in self.tensors)


def read_digest(stored: Mapping[str, Stored], known: Mapping[str, TensorDigest]) -> str:
    """The hash of some tensors of a state.

    Args:
        stored: all of them, by name.
        known: hashes of those that are hashed, as far as they have been taken; what they lack is read.

    Raises:
        CheckpointError: they cannot be read.
    """
    with RowReader() as reader:
        return tensors_digest({stored[name].spec: complete(known[name], stored[name], reader) for name in known})


def find_optimizer(checkpoint: Checkpoint) -> Path | None:
    """The optimizer's state beside a checkpoint, if there is one."""
    folder = checkpoint.path.parent if checkpoint.is_file else checkpoint.path
    if checkpoint.is_file:
        stem = checkpoint.path.stem
        own = [folder / f"{stem}.{name}" for name in _FILES]
        return next((path for path in own if path.is_file()), None)
    for name in _FILES:
        if (folder / name).is_file():
            return folder / name
    return next((folder / name for name in _FOLDERS if (folder / name / ".metadata").is_file()), None)


def resumed_files(folder: Path) -> tuple[Path, ...]:
    """The files of a Trainer's checkpoint that a widened one takes along as they are.

    Raises:
        CheckpointError: one is a link out of the folder.
    """
    return tuple(sorted(own_file(file) for pattern in _COPIED for file in folder.glob(pattern)))


def state_name(names: Collection[str]) -> str | None:
    """The optimizer's state among the files of a directory: a file or a folder."""
    file = next((name for name in _FILES if name in names), None)
    return file or next((name for name in _FOLDERS if f"{name}/.metadata" in names), None)


def state_names(names: Collection[str], state: str | None = None) -> tuple[str, ...]:
    """The files of a directory that the optimizer's state consists of, and what resuming needs beside it.

    Args:
        names: of all its files, relative to it.
        state: the state's own, if it is known.
    """
    own = state or state_name(names)
    if own is None:
        return ()
    stem = own.removesuffix(".safetensors.index.json")
    patterns = [own, f"{own}/*", *_COPIED, SCHEDULER]
    if stem != own:
        patterns.append(f"{stem}-*-of-*.safetensors")
    return tuple(sorted(name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)))


def open_optimizer(
    path: Path, config: Mapping[str, Any] | None, *, key: str | None = None, allow_pickle: bool = False
) -> OptimizerSource:
    """Read what an optimizer's state consists of, without its data.

    Args:
        path: a safetensors file or index, a file of torch.save, or a folder of torch.distributed.checkpoint.
        config: config.json, by which numbered parameters may be named.
        key: dotted keys that lead to the state in a file that holds more than it.
        allow_pickle: read folders of torch.distributed.checkpoint, whose metadata are a pickle.

    Raises:
        CheckpointError: it is not one of these, or not valid.
    """
    if path.is_dir():
        if not (path / ".metadata").is_file():
            raise CheckpointError(
                f"`{path}` is not an optimizer's state: it has no .metadata of a distributed checkpoint"
            )
        if not allow_pickle:
            raise CheckpointError(
                f"`{path}` is a torch distributed checkpoint, whose metadata are a pickle that could run code",
                hint="if you trust where it comes from, add `--allow-pickle`; `--optimizer none` leaves it behind",
            )
        from mupscale_cli.optimizers.formats.distributed import open_distributed

        return open_distributed(path, config, key)
    if not path.is_file():
        raise CheckpointError(f"there is no optimizer's state at `{path}`")
    if path.suffix in (".safetensors", ".json"):
        return _open_safetensors(path)
    from mupscale_cli.optimizers.formats.torch import open_torch_state

    return open_torch_state(path, config, key)


# Safetensors ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class SafetensorsState:
    """`state.PARAMETER.KEY` in one safetensors file, or in several with an index."""

    path: Path
    files: tuple[Path, ...]
    stored: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]
    content: None = None

    @property
    def num_bytes(self) -> int:
        return sum(tensor.spec.num_bytes for tensor in self.stored.values())

    def digest(self) -> str:
        return files_digest({file.name: safetensors_digest(file) for file in self.files})

    def widen(self, plan: Plan, policy: Policy, max_shard_bytes: int | None) -> WideState:
        """Plan the widened state.

        Raises:
            MupscaleError: it does not belong to the weights, or has entries that are not understood.
        """
        states = plan_state(plan, self._entries(plan), policy)
        tensors = tuple(state.tensor for state in states)

        def write(how: Writing) -> StateFile | None:
            from mupscale_cli.engine.shards import convert

            stem = how.name.removesuffix(".index.json").removesuffix(".safetensors")
            shards = split_into_shards(tensors, max_shard_bytes, f"{stem}{{suffix}}.safetensors")
            shards = shards or (Shard(f"{stem}.safetensors", ()),)  # a state that begins anew is an empty file
            known = tensor_digests(tensor.source for tensor in tensors)
            converted = convert(
                shards,
                self.stored,
                how.directory,
                metadata=self.metadata,
                progress=how.progress,
                sources=known,
                allow_nonfinite=how.allow_nonfinite,
                ranks=how.ranks,
            )
            if converted is None:
                return None
            about = converted.nonfinite, read_digest(self.stored, known), files_digest(converted.digests)
            if len(shards) == 1:
                return StateFile(f"{stem}.safetensors", *about)
            weight_map = {tensor.target.name: shard.file for shard in shards for tensor in shard.tensors}
            total = sum(shard.num_bytes for shard in shards)
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            write_json(how.directory / f"{stem}.safetensors.index.json", index)
            return StateFile(f"{stem}.safetensors.index.json", *about)

        return WideState(tensors, self.stored, write, {"format": "safetensors"})

    def _entries(self, plan: Plan) -> list[StateEntry]:
        """The entries under the prefix that makes their parameters known, told apart by what is there."""
        if not self.stored:
            raise CheckpointError(f"`{self.path}` holds no tensors")
        names = ParameterNames(plan)
        for prefix in FLAT_PREFIXES:
            if all(name.startswith(prefix) for name in self.stored):
                parsed = [(*name.removeprefix(prefix).rpartition(".")[::2], t.spec) for name, t in self.stored.items()]
                if any(names.knows(parameter) for parameter, _, _ in parsed):
                    return [StateEntry(parameter, key, spec) for parameter, key, spec in parsed]
        raise CheckpointError(
            f"`{self.path}` holds no state of a parameter of this checkpoint",
            hint=f"its tensors should be called `state.PARAMETER.exp_avg`; "
            f"the first is `{next(iter(self.stored), '')}`",
        )


def _open_safetensors(path: Path) -> SafetensorsState:
    files = [path]
    if path.suffix == ".json":
        files = [path.parent / shard for shard in dict.fromkeys(weight_map(path).values())]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise CheckpointError(f"`{path}` names {missing[0]}, which is not there")
    headers = [read_header(file) for file in files]
    # A state that was written to begin anew has no tensors.
    stored = merged(headers, path) if any(header.tensors for header in headers) else {}
    return SafetensorsState(path, tuple(files), stored, {"format": "pt", **headers[0].metadata})

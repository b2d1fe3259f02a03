"""Folders of torch.distributed.checkpoint (FSDP2, torchtitan, accelerate), in one process.

Tensors are read, widened and written one after the other, so memory is that of the largest one.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from mupscale_cli.convert import expand_whole
from mupscale_cli.errors import CheckpointError, MupscaleError
from mupscale_cli.finite import NonFinite
from mupscale_cli.optimizer.content import WideContent, locate_optimizer, widen_content
from mupscale_cli.optimizer.files import Progress, StateFile, WideState, Writing
from mupscale_cli.optimizer.order import names_by_order
from mupscale_cli.optimizer.torchfile import DTYPE_NAMES, Place, blank, place_name, walk
from mupscale_cli.plan import Plan, TensorPlan
from mupscale_cli.specs import TensorSpec
from mupscale_cli.state import Policy


@dataclass(frozen=True)
class DistributedState:
    """A distributed checkpoint that holds an optimizer's state dict somewhere.

    Attributes:
        path: the folder.
        content: what it holds, nested, with blank tensors.
        keys: the flat key of each tensor, by its name.
        root: where the optimizer's state dict is.
        config: config.json of the weights.
    """

    path: Path
    content: Any
    keys: Mapping[str, str]
    root: Place
    config: Mapping[str, Any] | None

    @property
    def num_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for _, tensor in walk(self.content))

    def widen(self, plan: Plan, policy: Policy, max_shard_bytes: int | None) -> WideState:  # noqa: ARG002 (torch decides)
        """Plan the widened checkpoint.

        Raises:
            MupscaleError: it does not belong to the weights, or has entries that are not understood.
        """
        specs = {
            id(tensor): TensorSpec(place_name(place), DTYPE_NAMES[tensor.dtype], tuple(tensor.shape))
            for place, tensor in walk(self.content)
        }
        wide = widen_content(
            self.content, specs, self.root, plan, policy,
            self.config, lambda groups, states: names_by_order(self.config, groups, states),
        )  # fmt: skip

        def write(how: Writing) -> StateFile | None:
            if not how.ranks.is_first:
                return None
            nonfinite = NonFinite(is_allowed=how.allow_nonfinite)
            _save(wide, self, how, nonfinite)
            return StateFile(how.name, nonfinite.counts)

        groups = tuple((group.source, group.multipliers.lr) for group in wide.groups)
        size = sum(tensor.target.num_bytes for tensor in wide.tensors)
        return WideState(size, write, {"format": "distributed"}, groups, wide.copied)


def open_distributed(path: Path, config: Mapping[str, Any] | None, key: str | None) -> DistributedState:
    """Read the structure of a distributed checkpoint. Its metadata are a pickle: code of it may run.

    Raises:
        CheckpointError: it cannot be read, or holds no optimizer's state.
    """
    try:
        metadata: Metadata = FileSystemReader(path).read_metadata()
        plain: dict[str, Any] = {
            name: None for name, kind in metadata.state_dict_metadata.items() if isinstance(kind, BytesStorageMetadata)
        }
        if plain:
            with alone():
                load(plain, checkpoint_id=path, no_dist=True)
    except (Exception, CheckpointException) as error:  # noqa: BLE001 (whatever an unpickler meets in a broken file)
        raise CheckpointError(f"cannot read the distributed checkpoint `{path}`: {error}") from None
    content: dict[Any, Any] = {}
    keys = {}
    places: Mapping[str, Place] = metadata.planner_data or {}
    for name, kind in metadata.state_dict_metadata.items():
        place = places.get(name, (name,))
        value = plain.get(name)
        if isinstance(kind, TensorStorageMetadata):
            value = blank(TensorSpec(name, DTYPE_NAMES[kind.properties.dtype], tuple(kind.size)))
            keys[place_name(place)] = name
        _put(content, place, value)
    content = _with_lists(content)
    return DistributedState(path, content, keys, locate_optimizer(content, key, str(path)), config)


@contextmanager
def alone() -> Iterator[None]:
    """One process without a process group is meant, and no reason for a warning; errors are the user's to read."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        try:
            yield
        except CheckpointException as failed:
            causes = [cause[0] for cause in failed.failures.values()]
            told = next((cause for cause in causes if isinstance(cause, MupscaleError)), None)
            if told is not None:
                raise told from None
            raise CheckpointError(f"torch could not read or write a distributed checkpoint: {causes[0]}") from failed


def _put(content: dict[Any, Any], place: Place, value: Any) -> None:
    for part in place[:-1]:
        content = content.setdefault(part, {})
    content[place[-1]] = value


def _with_lists(content: Any) -> Any:
    """Mappings from 0, 1, 2 ... below `param_groups` were lists before the checkpoint was flattened."""
    if not isinstance(content, dict):
        return content
    result = {key: _with_lists(value) for key, value in content.items()}
    if isinstance(result.get("param_groups"), dict):
        result["param_groups"] = [_listed(group) for _, group in sorted(result["param_groups"].items())]
    return result


def _listed(group: Any) -> Any:
    if not isinstance(group, dict):
        return group
    indexed = {
        key: value
        for key, value in group.items()
        if isinstance(value, dict) and value and set(value) == set(range(len(value)))
    }
    return {**group, **{key: [value[i] for i in range(len(value))] for key, value in indexed.items()}}


class _Widening(DefaultSavePlanner):
    """A save planner whose tensors come into being when they are written."""

    def __init__(
        self,
        tensors: Mapping[Place, TensorPlan],
        source: DistributedState,
        progress: Progress,
        nonfinite: NonFinite,
    ) -> None:
        super().__init__()
        self.tensors = tensors
        self.source = source
        self.progress = progress
        self.nonfinite = nonfinite

    def resolve_data(self, write_item: Any) -> Any:
        """The data of one item: the widened tensor, or what stands in the state dict."""
        tensor = self.tensors.get(self.mappings.get(write_item.index.fqn, (write_item.index.fqn,)))
        if tensor is None:
            return super().resolve_data(write_item)
        narrow = blank_real(tensor.source)
        key = self.source.keys[tensor.source.name]
        with alone():
            load({key: narrow}, checkpoint_id=self.source.path, no_dist=True)
        wide = expand_whole(tensor, narrow, self.nonfinite)
        self.progress(tensor.target.num_bytes)
        return wide


def blank_real(spec: TensorSpec) -> torch.Tensor:
    """A tensor with memory of its own."""
    return torch.empty(spec.shape, dtype=blank(spec).dtype)


def _save(wide: WideContent, source: DistributedState, how: Writing, nonfinite: NonFinite) -> None:
    by_name = {tensor.target.name: tensor for tensor in wide.tensors}
    tensors = {place: by_name[place_name(place)] for place, _ in walk(wide.content)}
    content = _on_meta(wide.content)
    with alone():
        save(
            content,
            storage_writer=FileSystemWriter(how.directory / how.name, single_file_per_rank=False, sync_files=True),
            planner=_Widening(tensors, source, how.progress, nonfinite),
            no_dist=True,
        )


def _on_meta(content: Any) -> Any:
    """The same structure with tensors that have no data at all."""
    if isinstance(content, torch.Tensor):
        return torch.empty(content.shape, dtype=content.dtype, device="meta")
    if isinstance(content, Mapping):
        return {key: _on_meta(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_on_meta(value) for value in content]
    return content

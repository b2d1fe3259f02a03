"""Read and write folders of torch.distributed.checkpoint (FSDP2, torchtitan, accelerate) without their tensors."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter, _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from mupscale_cli.checkpoints.containers import stand_ins
from mupscale_cli.checkpoints.containers.base import Contents, TensorSlot
from mupscale_cli.checkpoints.containers.blank import find_slots, save_blank
from mupscale_cli.checkpoints.containers.chunks import Chunk, ChunkedTensor
from mupscale_cli.checkpoints.containers.metadata import read_metadata
from mupscale_cli.checkpoints.containers.nested import check_structure, map_tensors, walk
from mupscale_cli.checkpoints.containers.places import Place, place_name
from mupscale_cli.checkpoints.containers.torch_file import blank_tensor, dtype_name
from mupscale_cli.checkpoints.json_files import MAX_LIST_BYTES, is_file_name
from mupscale_cli.checkpoints.output_files import output_errors
from mupscale_cli.dtypes import TensorSpec, dtype_of
from mupscale_cli.errors import CheckpointError, MupscaleError
from mupscale_cli.files import plain, read_errors, require_plain
from mupscale_cli.text import first_line, shown

_LONGEST_LIST = 1_000_000


def read_distributed(path: Path) -> Contents:
    """Read the structure of a distributed checkpoint.

    Its metadata is a pickle, and so is every value that is no tensor. Neither may name code.

    Raises:
        CheckpointError: the checkpoint cannot be read, or its pickles name code.
    """
    try:
        require_plain(path / ".metadata", MAX_LIST_BYTES)
        metadata = read_metadata(path / ".metadata")
        _check_files(path, metadata)
        values = {
            name: _read_value(path, name, metadata)
            for name, kind in metadata.state_dict_metadata.items()
            if isinstance(kind, BytesStorageMetadata)
        }
    except (Exception, CheckpointException) as error:
        if isinstance(error, CheckpointError) and error.hint:
            raise
        raise CheckpointError(
            f"cannot read the distributed checkpoint `{path}`: {first_line(error)}",
            hint="its `.metadata` is damaged, or of another program; copy or save the checkpoint again",
        ) from error
    content: dict[Any, Any] = {}
    stored = {}
    places = _places(metadata, path)
    for name, kind in metadata.state_dict_metadata.items():
        place = places.get(name, (name,))
        value = values.get(name)
        if isinstance(kind, TensorStorageMetadata):
            spec = TensorSpec(place_name(place), dtype_name(kind.properties.dtype, name, path), tuple(kind.size))
            value = blank_tensor(spec)
            stored[spec.name] = ChunkedTensor(spec, name, _chunks(path, name, spec, kind, metadata))
        _insert(content, place, value, path)
    check_structure(content, path)
    whole = _restore_lists(content, path)
    return Contents(path, whole, {place: stored[place_name(place)] for place, _ in walk(whole)})


def _places(metadata: Metadata, path: Path) -> Mapping[str, Place]:
    """Return the place of each value by its flat name; none if the names are the keys."""
    places = metadata.planner_data or {}
    valid = isinstance(places, Mapping) and all(
        isinstance(place, tuple) and place and all(isinstance(part, (str, int)) for part in place)
        for place in places.values()
    )
    if not valid:
        raise CheckpointError(
            f"the metadata of the distributed checkpoint `{path}` have no valid places of its values",
            hint="save it again with the planner of torch",
        )
    return places


def _read_value(path: Path, name: str, metadata: Metadata) -> Any:
    """Read a value that is no tensor; torch saves each separately."""
    info = (metadata.storage_data or {}).get(MetadataIndex(name))
    if info is None:
        raise CheckpointError(f"its metadata have no location for `{name}`")
    with open(path / info.relative_path, "rb", opener=plain) as stream:
        stream.seek(info.offset)
        data = BytesIO(stream.read(info.length))
    try:
        return stand_ins.load(data, "cpu")
    except Exception as error:
        raise CheckpointError(
            f"cannot read `{name}` in the distributed checkpoint `{path}`: {first_line(error)}",
            hint=stand_ins.PLAIN_ONLY,
        ) from error


def _check_files(path: Path, metadata: Metadata) -> None:
    """Check that the metadata names only plain files in the folder."""
    for name in {info.relative_path for info in (metadata.storage_data or {}).values()}:
        if not is_file_name(name):
            raise CheckpointError(f"its metadata name the file {shown(name)}")
        require_plain(path / name)


def _chunks(
    path: Path, name: str, spec: TensorSpec, kind: TensorStorageMetadata, metadata: Metadata
) -> tuple[Chunk, ...]:
    chunks = []
    for each in kind.chunks:
        info = (metadata.storage_data or {}).get(MetadataIndex(name, each.offsets))
        corner, sizes = tuple(each.offsets), tuple(each.sizes)
        is_inside = len(corner) == len(sizes) == len(spec.shape) and all(
            first >= 0 and count >= 0 and first + count <= size
            for first, count, size in zip(corner, sizes, spec.shape, strict=True)
        )
        if not is_inside or info is None:
            raise CheckpointError(
                f"the metadata of the distributed checkpoint `{path}` has no valid location for `{name}`"
            )
        if info.transform_descriptors:
            extensions = ", ".join(info.transform_descriptors)
            raise CheckpointError(
                f"`{name}` in the distributed checkpoint `{path}` is written with extensions ({extensions})",
                hint="save the checkpoint again without extensions",
            )
        box = TensorSpec(spec.name, spec.dtype, sizes)
        chunks.append(Chunk(box, corner, path / info.relative_path, info.offset, info.length))
    return tuple(chunks)


@contextmanager
def single_process() -> Iterator[None]:
    """Silence torch's warning about a missing process group, and raise the cause of its errors.

    Raises:
        OSError: the system cannot read or write a file.
        CheckpointError: torch cannot read or write the checkpoint.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        try:
            yield
        except CheckpointException as failed:
            causes = [cause[0] for cause in failed.failures.values()]
            own = next((cause for cause in causes if isinstance(cause, (MupscaleError, OSError))), None)
            if own is not None:
                raise own from failed
            raise CheckpointError(f"torch cannot read or write the distributed checkpoint: {causes[0]}") from failed


def _insert(content: dict[Any, Any], place: Place, value: Any, path: Path) -> None:
    for part in place[:-1]:
        content = content.setdefault(part, {})
        if not isinstance(content, dict):
            raise CheckpointError(f"`{path}` holds both a value and a mapping at `{place_name(place)}`")
    content[place[-1]] = value


def _restore_lists(content: Any, path: Path) -> Any:
    """Restore lists: the places of a distributed checkpoint have numbers only for them, since keys become text."""
    if not isinstance(content, dict):
        return content
    restored = {key: _restore_lists(value, path) for key, value in content.items()}
    if not restored or not all(isinstance(key, int) for key in restored):
        return restored
    if min(restored) < 0 or max(restored) >= _LONGEST_LIST:
        raise CheckpointError(f"`{path}` holds a list with more than {_LONGEST_LIST} elements")
    return [restored.get(index) for index in range(max(restored) + 1)]


def write_blank_folder(path: Path, content: Any) -> dict[str, TensorSlot]:
    """Write a distributed checkpoint whose tensors have no data yet; return the slot of each place's data."""
    writer, planner = _BlankWriter(path), _Planner()
    with output_errors(path), single_process():
        save(content, storage_writer=writer, planner=planner, no_dist=True)
    return {place_name(planner.mappings[key]): slot for key, slot in writer.slots.items()}


class _Planner(DefaultSavePlanner):
    """Pickles values with stand-ins in them, as they were read."""

    def transform_object(self, write_item: WriteItem, object: Any) -> Any:  # noqa: A002 (torch's name)
        if write_item.type != WriteItemType.BYTE_IO:
            return object
        data = BytesIO()
        torch.save(object, data, pickle_module=stand_ins)
        return data


class _BlankWriter(FileSystemWriter):
    """Writes every tensor as a separate blank file, and other values as usual.

    Attributes:
        slots: the slot of each tensor's data, by its key.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.slots: dict[str, TensorSlot] = {}

    def storage_meta(self) -> None:
        """Write none: torch's has a local path and a random number, but two runs must write the same bytes."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write the items of a plan like torch's own writer, but without the tensors' data."""
        written: Future[list[WriteResult]] = Future()
        written.set_result([self._write(item, planner, number) for number, item in enumerate(plan.items)])
        return written

    def _write(self, item: WriteItem, planner: SavePlanner, number: int) -> WriteResult:
        file = Path(self.path) / f"__0_{number}.distcp"
        if item.type == WriteItemType.BYTE_IO:
            data = planner.resolve_data(item)
            assert isinstance(data, BytesIO)
            with open(file, "xb") as stream:
                stream.write(data.getbuffer())
        else:
            tensor = item.tensor_data
            assert tensor is not None
            spec = TensorSpec(item.index.fqn, dtype_of(tensor.properties.dtype).name, tuple(tensor.size))
            save_blank(file, blank_tensor(spec))
            if spec.num_bytes:
                (self.slots[spec.name],) = find_slots(file)
        size = file.stat().st_size
        return WriteResult(item.index, size, _StorageInfo(file.name, 0, size))


def load_distributed(contents: Contents) -> Any:
    """Load the content of a distributed checkpoint into memory, with torch.

    Raises:
        CheckpointError: torch cannot read the checkpoint.
    """
    tensors = {place: _empty(tensor.spec) for place, tensor in contents.tensors.items()}
    by_key = {tensor.key: tensors[p] for p, tensor in contents.tensors.items() if isinstance(tensor, ChunkedTensor)}
    with read_errors(contents.path), single_process():
        load(by_key, checkpoint_id=contents.path, no_dist=True)
    return map_tensors(contents.content, (), lambda place, _: tensors[place])


def _empty(spec: TensorSpec) -> torch.Tensor:
    return torch.empty(spec.shape, dtype=blank_tensor(spec).dtype, device="cpu")

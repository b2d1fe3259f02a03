"""Comparing every stored byte with what the plan makes of the source; works on files and runs no model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mupscale_cli.checkpoints.config import CONFIG
from mupscale_cli.checkpoints.header import ReadableTensor
from mupscale_cli.checkpoints.output_files import write_json
from mupscale_cli.checkpoints.reading import Checkpoint, open_checkpoint
from mupscale_cli.checkpoints.rows import RowReader
from mupscale_cli.checkpoints.scratch import scratch_folder
from mupscale_cli.dtypes import DTYPES
from mupscale_cli.engine.finite import NonFinite
from mupscale_cli.engine.processes import Forks, run_forked, worthwhile
from mupscale_cli.engine.shards import byte_share, write_shards
from mupscale_cli.engine.streaming import write_tensors
from mupscale_cli.errors import OutputError
from mupscale_cli.optimizers.formats.base import OptimizerSource, WideState
from mupscale_cli.optimizers.nested import Place, place_name
from mupscale_cli.plan import Plan, TensorPlan, split_into_shards
from mupscale_cli.text import shown
from mupscale_cli.verification.result import CannotVerify, WeightsCheck

Progress = Callable[[int], None]
_MAX_SHOWN = 60  # characters of a value in a message


def check_weights(
    narrow: Checkpoint,
    wide: Checkpoint,
    plan: Plan,
    progress: Progress = lambda _: None,
    processes: int | None = 1,
) -> WeightsCheck:
    """Widen the source again; compare every byte with the stored weights instead of writing it.

    Args:
        narrow: the source.
        wide: its widening.
        plan: plan of the widening.
        progress: called with the number of bytes just compared.
        processes: number of processes to use, as for `widen`.

    Raises:
        CheckpointError: the source cannot be read.
    """
    return _check(plan.tensors, narrow.tensors, wide.tensors, progress, processes)


def check_state(
    planned: WideState,
    wide: OptimizerSource,
    progress: Progress = lambda _: None,
    processes: int | None = 1,
) -> WeightsCheck:
    """Widen an optimizer's state again; compare every byte and every setting with the stored state.

    Args:
        planned: planned state, made from the narrow one.
        wide: stored state.
        progress: called with the number of bytes just compared.
        processes: number of processes to use, as for `widen`.

    Raises:
        CheckpointError: one of the states cannot be read.
    """
    check = _check(planned.tensors, planned.stored, wide.stored, progress, processes)
    settings = _differing_settings(planned.content, wide.content) if planned.content is not None else ()
    return replace(check, differences=(*check.differences, *settings))


def _check(
    tensors: Iterable[TensorPlan],
    narrow: Mapping[str, ReadableTensor],
    wide: Mapping[str, ReadableTensor],
    progress: Progress,
    processes: int | None,
) -> WeightsCheck:
    planned = {tensor.target.name: tensor for tensor in tensors}
    differences = [f"`{name}` is not in the plan" for name in wide if name not in planned]
    comparable: list[TensorPlan] = []
    for name, tensor in planned.items():
        stored = wide.get(name)
        if stored is None:
            differences.append(f"`{name}` is missing")
        elif stored.spec != tensor.target:
            differences.append(
                f"`{name}` is {stored.spec.dtype} {stored.spec.shape}, expected "
                f"{tensor.target.dtype} {tensor.target.shape}"
            )
        else:
            comparable.append(tensor)
    num_bytes = sum(tensor.target.num_bytes for tensor in comparable)
    first: dict[str, int] = {}

    def work(forks: Forks) -> list[dict[str, int]]:
        return forks.gather(_first_differences(comparable, narrow, wide, forks))

    for offsets in run_forked(processes or worthwhile(num_bytes), work, progress):
        for name, offset in offsets.items():
            first[name] = min(offset, first.get(name, offset))
    differences += [_describe(planned[name], offset) for name, offset in first.items()]
    return WeightsCheck(len(comparable), num_bytes, tuple(differences))


def _first_differences(
    tensors: Sequence[TensorPlan],
    narrow: Mapping[str, ReadableTensor],
    wide: Mapping[str, ReadableTensor],
    forks: Forks,
) -> dict[str, int]:
    """Return the offset of the first differing byte of each tensor, in this process's share of the work."""
    nonfinite = NonFinite(is_allowed=True)  # the source may have some; a stored one that it lacks is a difference
    part = range(*byte_share(tensors, forks))
    with _ComparingWriter(wide) as writer:
        write_tensors(tensors, narrow, writer, progress=forks.advance, nonfinite=nonfinite, part=part)
    return writer.first


class _ComparingWriter:
    """A writer that compares with stored tensors instead of writing; a context manager that closes its files.

    Threads may share it: each gets its own reader.

    Attributes:
        first: offset of the first differing byte of each tensor that differs.
    """

    def __init__(self, stored: Mapping[str, ReadableTensor]) -> None:
        self.stored = stored
        self.first: dict[str, int] = {}
        self._readers = ExitStack()
        self._lock = threading.Lock()
        self._of_thread = threading.local()

    def __enter__(self) -> _ComparingWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._readers.close()

    def write(self, name: str, start: int, pieces: Sequence[memoryview]) -> None:
        """Compare consecutive pieces with a stored tensor's bytes from offset `start` on."""
        planned = b"".join(pieces)
        stored = self._read(name, start, len(planned))
        if stored != planned:
            offset = start + next(i for i, (a, b) in enumerate(zip(stored, planned, strict=True)) if a != b)
            with self._lock:
                self.first[name] = min(offset, self.first.get(name, offset))

    def _read(self, name: str, start: int, num_bytes: int) -> bytearray:
        """Return stored bytes, valid until the next read of the same thread."""
        local = self._of_thread
        if not hasattr(local, "reader"):
            with self._lock:
                local.reader, local.buffer = self._readers.enter_context(RowReader()), bytearray()
        if len(local.buffer) != num_bytes:  # most blocks have the same size
            local.buffer = bytearray(num_bytes)
        local.reader.read(self.stored[name], start, memoryview(local.buffer))
        buffer: bytearray = local.buffer
        return buffer


def _differing_settings(planned: Any, stored: Any, place: Place = ()) -> Iterator[str]:
    """Yield the differences of two nested structures of mappings and sequences, except those of tensors."""
    if isinstance(planned, torch.Tensor) or isinstance(stored, torch.Tensor):
        return  # `_check` compares tensors, and reports missing ones
    if isinstance(planned, Mapping) and isinstance(stored, Mapping):
        for key in (*planned, *(key for key in stored if key not in planned)):
            inner = (*place, key)
            if key in planned and key in stored:
                yield from _differing_settings(planned[key], stored[key], inner)
            else:
                yield from _one_sided((planned if key in planned else stored)[key], inner, is_planned=key in planned)
    elif isinstance(planned, (list, tuple)) and isinstance(stored, (list, tuple)) and len(planned) == len(stored):
        for index, pair in enumerate(zip(planned, stored, strict=True)):
            yield from _differing_settings(*pair, (*place, index))
    elif planned != stored and repr(planned) != repr(stored):  # NaN equals NaN here
        yield f"`{place_name(place)}` is {shown(stored, _MAX_SHOWN)}, expected {shown(planned, _MAX_SHOWN)}"


def _one_sided(value: Any, place: Place, *, is_planned: bool) -> Iterator[str]:
    """Yield the settings in a value that only one structure has.

    An empty mapping is not a difference: distributed checkpoints do not keep it.
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _one_sided(inner, (*place, key), is_planned=is_planned)
    elif not isinstance(value, torch.Tensor):
        yield f"`{place_name(place)}` is {'missing' if is_planned else 'not in the plan'}"


def _describe(tensor: TensorPlan, offset: int) -> str:
    """Describe a difference at a byte offset by the index of its element."""
    element, index = offset // DTYPES[tensor.target.dtype].size, []
    for size in reversed(tensor.target.shape):
        element, position = divmod(element, size)
        index.append(position)
    return f"`{tensor.target.name}` differs, first at element {tuple(reversed(index))}"


def without_noise(plan: Plan) -> Plan:
    """Return a plan for the same widening without noise, in a single file."""
    tensors = [replace(tensor, noise=None) for tensor in plan.tensors]
    parameters = tuple(replace(tensor, noise=None) for tensor in plan.parameters)
    return replace(plan, shards=split_into_shards(tensors, None), parameters=parameters, perturbation=None)


@contextmanager
def unperturbed_checkpoint(narrow: Checkpoint, plan: Plan, parent: Path) -> Iterator[Checkpoint]:
    """Write the widened checkpoint without its noise; delete it when the context ends.

    Args:
        narrow: the source.
        plan: plan of the widening.
        parent: folder to write in; the system's temporary folder is used if it is not writable.

    Raises:
        CannotVerify: the checkpoint cannot be written, for instance for lack of disk space.
    """
    with scratch_folder(parent) as folder:
        try:
            write_shards(without_noise(plan).shards, narrow.tensors, folder, metadata={"format": "pt"})
            if plan.config is not None:
                write_json(folder / CONFIG, plan.config)
        except OutputError as error:
            raise CannotVerify(f"cannot write the model without its noise, to compare it: {error}") from error
        yield open_checkpoint(folder)

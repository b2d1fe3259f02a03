"""Every stored tensor against source, rule and noise: no model, only files."""

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
from mupscale_cli.checkpoints.reading import Checkpoint, open_checkpoint
from mupscale_cli.checkpoints.rows import RowReader
from mupscale_cli.checkpoints.scratch import scratch_folder
from mupscale_cli.checkpoints.staging import write_json
from mupscale_cli.dtypes import DTYPES
from mupscale_cli.engine.finite import NonFinite
from mupscale_cli.engine.processes import Forks, forked, worthwhile
from mupscale_cli.engine.shards import byte_share, write_shards
from mupscale_cli.engine.streaming import write_tensors
from mupscale_cli.errors import OutputError
from mupscale_cli.optimizers.formats.base import OptimizerSource, WideState
from mupscale_cli.optimizers.nested import Place, place_name
from mupscale_cli.plan import Plan, TensorPlan, split_into_shards
from mupscale_cli.text import shown
from mupscale_cli.verification.result import CannotVerify, WeightsCheck

Progress = Callable[[int], None]
_MOST_SHOWN = 60  # characters of a value


def check_weights(
    narrow: Checkpoint,
    wide: Checkpoint,
    plan: Plan,
    progress: Progress = lambda _: None,
    processes: int | None = 1,
) -> WeightsCheck:
    """Widen again, and compare every byte with what is stored instead of writing it.

    Args:
        narrow: the source.
        wide: what it was widened to.
        plan: how.
        progress: called with the bytes of tensor data just compared.
        processes: how many of this machine share the work, as for `widen`.

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
    """Widen an optimizer's state again, and compare every byte and every setting with what is stored.

    Args:
        planned: the state that the narrow one becomes.
        wide: what was stored.
        progress: called with the bytes of tensor data just compared.
        processes: how many of this machine share the work, as for `widen`.

    Raises:
        CheckpointError: one of them cannot be read.
    """
    found = _check(planned.tensors, planned.stored, wide.stored, progress, processes)
    settings = _other_settings(planned.content, wide.content) if planned.content is not None else ()
    return replace(found, differences=(*found.differences, *settings))


def _check(
    tensors: Iterable[TensorPlan],
    narrow: Mapping[str, ReadableTensor],
    wide: Mapping[str, ReadableTensor],
    progress: Progress,
    processes: int | None,
) -> WeightsCheck:
    planned = {tensor.target.name: tensor for tensor in tensors}
    differences = [f"`{name}` is not in the plan" for name in wide if name not in planned]
    known: list[TensorPlan] = []
    for name, tensor in planned.items():
        stored = wide.get(name)
        if stored is None:
            differences.append(f"`{name}` is missing")
        elif stored.spec != tensor.target:
            differences.append(
                f"`{name}` is {stored.spec.dtype} {stored.spec.shape}, planned was "
                f"{tensor.target.dtype} {tensor.target.shape}"
            )
        else:
            known.append(tensor)
    num_bytes = sum(tensor.target.num_bytes for tensor in known)
    first: dict[str, int] = {}
    with forked(processes or worthwhile(num_bytes), progress) as forks:
        for differing in forks.gather(_compared(known, narrow, wide, forks)):
            for name, place in differing.items():
                first[name] = min(place, first.get(name, place))
    differences += [_described(planned[name], place) for name, place in first.items()]
    return WeightsCheck(len(known), num_bytes, tuple(differences))


def _compared(
    tensors: Sequence[TensorPlan],
    narrow: Mapping[str, ReadableTensor],
    wide: Mapping[str, ReadableTensor],
    forks: Forks,
) -> dict[str, int]:
    """The first byte of each tensor that differs, in one process's part."""
    allowing = NonFinite(is_allowed=True)  # whatever is there was written as it is, or shows as a difference
    part = range(*byte_share(tensors, forks))
    with _Comparing(wide) as comparing:
        write_tensors(tensors, narrow, comparing, progress=forks.advance, nonfinite=allowing, part=part)
    return comparing.first


class _Comparing:
    """A writer that compares, each thread with a reader of its own; a context manager that closes them.

    Attributes:
        first: the first byte of each tensor that differs.
    """

    def __init__(self, stored: Mapping[str, ReadableTensor]) -> None:
        self.stored = stored
        self.first: dict[str, int] = {}
        self._readers = ExitStack()
        self._lock = threading.Lock()
        self._own = threading.local()

    def __enter__(self) -> _Comparing:
        return self

    def __exit__(self, *_: object) -> None:
        self._readers.close()

    def write(self, name: str, start: int, pieces: Sequence[memoryview]) -> None:
        """Compare pieces, one after the other, with a tensor's bytes from `start` on."""
        planned = b"".join(pieces)
        found = self._read(name, start, len(planned))
        if found != planned:
            place = start + next(i for i, (a, b) in enumerate(zip(found, planned, strict=True)) if a != b)
            with self._lock:
                self.first[name] = min(place, self.first.get(name, place))

    def _read(self, name: str, start: int, num_bytes: int) -> bytearray:
        """Bytes that are stored; valid until the same thread reads more."""
        own = self._own
        if not hasattr(own, "reader"):
            with self._lock:
                own.reader, own.held = self._readers.enter_context(RowReader()), bytearray()
        if len(own.held) != num_bytes:  # most blocks are of one size
            own.held = bytearray(num_bytes)
        own.reader.read(self.stored[name], start, memoryview(own.held))
        held: bytearray = own.held
        return held


def _other_settings(planned: Any, found: Any, place: Place = ()) -> Iterator[str]:
    """What differs of two nested mappings and sequences, tensors aside."""
    if isinstance(planned, torch.Tensor) or isinstance(found, torch.Tensor):
        return  # compared by themselves, or missing
    if isinstance(planned, Mapping) and isinstance(found, Mapping):
        for key in (*planned, *(key for key in found if key not in planned)):
            inner = (*place, key)
            if key in planned and key in found:
                yield from _other_settings(planned[key], found[key], inner)
            else:
                yield from _only_one((planned if key in planned else found)[key], inner, is_planned=key in planned)
    elif isinstance(planned, (list, tuple)) and isinstance(found, (list, tuple)) and len(planned) == len(found):
        for index, pair in enumerate(zip(planned, found, strict=True)):
            yield from _other_settings(*pair, (*place, index))
    elif planned != found and repr(planned) != repr(found):  # NaN is NaN here
        yield f"`{place_name(place)}` is {shown(found, _MOST_SHOWN)}, planned was {shown(planned, _MOST_SHOWN)}"


def _only_one(value: Any, place: Place, *, is_planned: bool) -> Iterator[str]:
    """Settings that only one of both has; an empty mapping, which distributed checkpoints do not keep, is none."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _only_one(inner, (*place, key), is_planned=is_planned)
    elif not isinstance(value, torch.Tensor):
        yield f"`{place_name(place)}` is {'missing' if is_planned else 'not in the plan'}"


def _described(tensor: TensorPlan, byte: int) -> str:
    """A difference by the index of its element."""
    element, index = byte // DTYPES[tensor.target.dtype].size, []
    for size in reversed(tensor.target.shape):
        element, position = divmod(element, size)
        index.append(position)
    return f"`{tensor.target.name}` differs, first at element {tuple(reversed(index))}"


def without_noise(plan: Plan) -> Plan:
    """The same widening unperturbed, in one file."""
    tensors = [replace(tensor, noise=None) for tensor in plan.tensors]
    parameters = tuple(replace(tensor, noise=None) for tensor in plan.parameters)
    return replace(plan, shards=split_into_shards(tensors, None), parameters=parameters, perturbation=None)


@contextmanager
def unperturbed(narrow: Checkpoint, plan: Plan, beside: Path) -> Iterator[Checkpoint]:
    """The checkpoint that the plan would make without its noise, for as long as the context lasts.

    Args:
        narrow: the source.
        plan: of the widening; its noise is left away.
        beside: a folder whose disk has room for it; where it cannot be written to, the system's temporary one is used.

    Raises:
        CannotVerify: there is no room for it.
    """
    with scratch_folder(beside) as folder:
        try:
            write_shards(without_noise(plan).shards, narrow.tensors, folder, metadata={"format": "pt"})
            if plan.config is not None:
                write_json(folder / CONFIG, plan.config)
        except OutputError as error:
            raise CannotVerify(f"the model without its noise cannot be written to compare it: {error}") from error
        yield open_checkpoint(folder)

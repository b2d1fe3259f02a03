"""Every stored tensor against source, rule and noise: no model, at the speed of the disk."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from mupscale_cli.checkpoint.digest import RowBuffer, Runs
from mupscale_cli.checkpoint.header import StoredTensor
from mupscale_cli.checkpoint.scratch import scratch
from mupscale_cli.checkpoint.source import CONFIG, Checkpoint, RowReader, open_checkpoint
from mupscale_cli.checkpoint.target import write_json
from mupscale_cli.convert import convert, write_tensors
from mupscale_cli.errors import OutputError
from mupscale_cli.finite import NonFinite
from mupscale_cli.plan import Plan, TensorPlan, split_into_shards
from mupscale_cli.specs import DTYPES
from mupscale_cli.verification.result import CannotVerify, WeightsCheck

Progress = Callable[[int], None]


def check_weights(
    narrow: Checkpoint, wide: Checkpoint, plan: Plan, progress: Progress = lambda _: None
) -> WeightsCheck:
    """Widen again, and compare every byte with what is stored instead of writing it.

    Args:
        narrow: the source.
        wide: what it was widened to.
        plan: how.
        progress: called with the bytes of tensor data just compared.

    Raises:
        CheckpointError: the source cannot be read.
    """
    planned = {tensor.target.name: tensor for tensor in plan.tensors}
    differences = [f"`{name}` is not in the plan" for name in wide.tensors if name not in planned]
    known: list[TensorPlan] = []
    for name, tensor in planned.items():
        stored = wide.tensors.get(name)
        if stored is None:
            differences.append(f"`{name}` is missing")
        elif stored.spec != tensor.target:
            differences.append(f"`{name}` is {stored.spec.dtype} {stored.spec.shape}, planned was "
                               f"{tensor.target.dtype} {tensor.target.shape}")  # fmt: skip
        else:
            known.append(tensor)
    with RowReader() as reader:
        comparing = _Comparing(reader, wide.tensors, {})
        allowing = NonFinite(is_allowed=True)  # whatever is there was written as it is, or shows as a difference
        write_tensors(known, narrow.tensors, comparing, progress=progress, nonfinite=allowing)
    differences += [_described(planned[name], place) for name, place in comparing.first.items()]
    return WeightsCheck(len(known), sum(tensor.target.num_bytes for tensor in known), tuple(differences))


@dataclass(frozen=True)
class _Comparing:
    """A writer that compares; `first` is the first byte of each tensor that differs."""

    reader: RowReader
    stored: Mapping[str, StoredTensor]
    first: dict[str, int]
    held: bytearray = field(default_factory=bytearray)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def write(self, name: str, start: int, buffer: RowBuffer, runs: Runs) -> None:
        """Compare consecutive runs of a buffer with a tensor's bytes from `start` on."""
        pieces = buffer.pieces(runs)
        size = sum(map(len, pieces))
        with self.lock:
            if len(self.held) < size:
                self.held.extend(bytes(size - len(self.held)))
            found = memoryview(self.held)[:size]
            self.reader.read(self.stored[name], start, found)
            done = 0
            for piece in pieces:
                part = found[done : done + len(piece)]
                if bytearray(part) != piece:
                    place = start + done + next(i for i, (a, b) in enumerate(zip(part, piece, strict=True)) if a != b)
                    self.first[name] = min(place, self.first.get(name, place))
                done += len(piece)


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
    with scratch(beside) as folder:
        try:
            convert(without_noise(plan).shards, narrow.tensors, folder, metadata={"format": "pt"})
            if plan.config is not None:
                write_json(folder / CONFIG, plan.config)
        except OutputError as error:
            raise CannotVerify(f"the model without its noise cannot be written to compare it: {error}") from None
        yield open_checkpoint(folder)

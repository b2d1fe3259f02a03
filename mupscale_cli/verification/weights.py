"""Comparing every stored byte with what the plan makes of the source; works on files and runs no model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from mupscale_cli.checkpoints.header import ReadableTensor
from mupscale_cli.checkpoints.libraries import library_of
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
from mupscale_cli.plan import Plan, TensorPlan, split_into_shards
from mupscale_cli.verification.content import content_differences
from mupscale_cli.verification.result import CannotVerify, TensorsCheck

Progress = Callable[[int], None]


def check_weights(
    narrow: Checkpoint,
    wide: Checkpoint,
    plan: Plan,
    progress: Progress = lambda _: None,
    processes: int | None = 1,
) -> TensorsCheck:
    """Widen the source again; compare every byte with the stored weights instead of writing it.

    Args:
        narrow: the source.
        wide: its widening.
        plan: plan of the widening, with the recorded size of the noise, which is measured again.
        progress: called with the number of bytes just compared.
        processes: number of processes to use, as for `widen`.

    Raises:
        CheckpointError: the source cannot be read.
    """
    check = _check(plan.tensors, narrow.tensors, wide.tensors, progress, processes)
    for module in plan.modules:
        sources, stored = narrow.module_tensors[module.folder], wide.module_tensors.get(module.folder, {})
        check += _check(module.tensors, sources, stored, progress, processes)
    return check


def check_state(
    planned: WideState,
    wide: OptimizerSource,
    progress: Progress = lambda _: None,
    processes: int | None = 1,
) -> TensorsCheck:
    """Widen an optimizer's state again; compare every byte and every setting with the stored state.

    Args:
        planned: planned state, made from the narrow one.
        wide: stored state.
        progress: called with the number of bytes just compared.
        processes: number of processes to use, as for `widen`.

    Raises:
        CheckpointError: one of the states cannot be read.
    """
    check = _check(planned.tensors, planned.stored, wide.stored, progress, processes, records_noise=False)
    return replace(check, differences=(*check.differences, *content_differences(planned.content, wide.content)))


def _check(
    tensors: Iterable[TensorPlan],
    narrow: Mapping[str, ReadableTensor],
    wide: Mapping[str, ReadableTensor],
    progress: Progress,
    processes: int | None,
    *,
    records_noise: bool = True,
) -> TensorsCheck:
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
    stds: dict[str, float] = {}

    def work(forks: Forks) -> list[tuple[dict[str, int], dict[str, float]]]:
        return forks.gather(_compare(comparable, narrow, wide, forks))

    for offsets, measured in run_forked(processes or worthwhile(num_bytes), work, progress):
        stds |= measured
        for name, offset in offsets.items():
            first[name] = min(offset, first.get(name, offset))
    differences += [_describe(planned[name], offset) for name, offset in first.items()]
    wrong = (name for name, std in stds.items() if records_noise and std != _noise_std(planned[name]))
    differences += [_describe_noise(planned[name], stds[name]) for name in wrong]
    return TensorsCheck(len(comparable), num_bytes, tuple(differences))


def _compare(
    tensors: Sequence[TensorPlan],
    narrow: Mapping[str, ReadableTensor],
    wide: Mapping[str, ReadableTensor],
    forks: Forks,
) -> tuple[dict[str, int], dict[str, float]]:
    """Compare this process's share of the tensors.

    Returns:
        The offset of the first differing byte of each tensor that differs, and the standard deviation of the noise of
        each tensor that has some.
    """
    nonfinite = NonFinite(is_allowed=True)  # the source may have some; a stored one that it lacks is a difference
    part = range(*byte_share(tensors, forks))
    with _ComparingWriter(wide) as writer:
        stds = write_tensors(tensors, narrow, writer, progress=forks.advance, nonfinite=nonfinite, part=part)
    return writer.first, stds


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


def _describe(tensor: TensorPlan, offset: int) -> str:
    """Describe a difference at a byte offset by the index of its element."""
    element, index = offset // DTYPES[tensor.target.dtype].size, []
    for size in reversed(tensor.target.shape):
        element, position = divmod(element, size)
        index.append(position)
    return f"`{tensor.target.name}` differs, first at element {tuple(reversed(index))}"


def _noise_std(tensor: TensorPlan) -> float | None:
    """Return the recorded standard deviation of a tensor's noise; None if the record lacks it."""
    return None if tensor.noise is None else tensor.noise.std


def _describe_noise(tensor: TensorPlan, std: float) -> str:
    recorded = "missing" if _noise_std(tensor) is None else f"{_noise_std(tensor):.6g}"
    return (
        f"the recorded standard deviation of the noise of `{tensor.target.name}` is {recorded}, "
        f"but the source gives {std:.6g}"
    )


def without_noise(plan: Plan) -> Plan:
    """Return a plan for the same widening without noise, in a single file."""
    tensors = [replace(tensor, noise=None, init=None) for tensor in plan.tensors]
    parameters = tuple(replace(tensor, noise=None, init=None) for tensor in plan.parameters)
    shards = split_into_shards(tensors, None, library_of(plan.config).shard_pattern)
    return replace(plan, shards=shards, parameters=parameters, perturbation=None)


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
                write_json(folder / library_of(plan.config).config, plan.config)
        except OutputError as error:
            raise CannotVerify(f"cannot write the model without its noise, to compare it: {error}") from error
        yield open_checkpoint(folder)

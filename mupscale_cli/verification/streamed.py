"""Weights that stay in their file while a model runs, converted piece by piece when an operation reads them.

A model in float64 takes four times the memory of its bfloat16 file, and most of the time that it takes to load and run
it once is that of touching new pages. A `StreamedWeight` has the shape and the type that the model expects, and no
memory. It refers to the stored elements, which are mapped from the file. Operations fall into three kinds:

- Those that only move elements, such as views, stacking and splitting, move the stored ones. transformers' own
  conversions, such as merging the experts of a layer, are made of them.
- Products with a matrix and embeddings convert the pieces of the weight that they need, in an order that suits the
  processor's cache.
- All others get the whole weight, converted for that one operation.

A model that changes a weight in place, while it is loaded or run, raises `ChangesWeightError` and needs whole weights.

This does not depend on which module owns a weight or when it is used, so every class runs as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mupscale_cli.engine.reading import MappedFile
from mupscale_cli.engine.threads import num_threads, run_jobs

_PIECE = 1 << 18  # elements that are converted at once: 2 MB in float64, which need no new pages
_aten = torch.ops.aten
# Operations whose result has the elements of its arguments, in another order or number.
_MOVES = frozenset(
    {
        _aten.alias.default,
        _aten.cat.default,
        _aten.clone.default,
        _aten.detach.default,
        _aten.expand.default,
        _aten.permute.default,
        _aten.select.int,
        _aten.slice.Tensor,
        _aten.split.Tensor,
        _aten.split_with_sizes.default,
        _aten.squeeze.dim,
        _aten.stack.default,
        _aten.t.default,
        _aten.transpose.int,
        _aten.unbind.int,
        _aten.unsqueeze.default,
        _aten.view.default,
        _aten._unsafe_view.default,  # noqa: SLF001 (the name of an operation)
    }
)


class ChangesWeightError(BaseException):
    """A model changes a streamed weight in place.

    It says how to load the model, not that something is wrong with it, so no handler of `Exception` on the way, in a
    library or here, may take it for a failure.
    """


class StreamedWeight(Tensor):
    """A weight whose elements stay as they are stored.

    Attributes:
        stored: the elements, of any floating-point type, on the CPU.
        files: the mapped files that contain them.
        change: returns the elements that the model has instead of the stored ones, in any type; None if it has those.
    """

    stored: Tensor
    files: tuple[MappedFile, ...]
    change: Callable[[Tensor], Tensor] | None

    # As torch's documentation says: operations are seen below, where they are the same for every caller.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # noqa: SLF001

    @staticmethod
    def __new__(
        cls: type[StreamedWeight],
        stored: Tensor,
        dtype: torch.dtype,
        device: torch.device,
        files: tuple[MappedFile, ...] = (),
    ) -> StreamedWeight:
        weight: StreamedWeight = Tensor._make_wrapper_subclass(  # noqa: SLF001
            cls, stored.shape, strides=stored.stride(), dtype=dtype, device=device
        )
        weight.stored, weight.files, weight.change = stored, files, None
        return weight

    def values(self) -> Tensor:
        """Return the elements in the model's type, on its device."""
        return self.converted(self.change or (lambda stored: stored))

    def converted(self, part: Callable[[Tensor], Tensor]) -> Tensor:
        """Convert a part of the stored elements to the model's type, on its device, and let go of the files' memory.

        Args:
            part: returns the part, or a function of it, given all elements.

        Raises:
            CheckpointError: a file has become shorter since it was mapped.
        """
        self.require_whole()
        found = part(self.stored).to(self.device).to(self.dtype)
        self.release()
        return found

    def require_whole(self) -> None:
        """Check that no file has become shorter since it was mapped.

        Raises:
            CheckpointError: one has.
        """
        for file in self.files:
            file.require_whole()

    def release(self) -> None:
        """Let the system take back the memory of the mapped files; it keeps their content in its cache."""
        for file in self.files:
            file.release()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        kwargs = kwargs or {}
        weights = _weights((args, kwargs))
        if all(weight.change is None for weight in weights):
            if func in _MOVES and len({weight.stored.dtype for weight in weights}) == 1:
                return _moved(func, args, kwargs, weights)
            if func in _PIECEWISE and not kwargs:
                return _PIECEWISE[func](*args)
        if func._schema.is_mutable:  # noqa: SLF001 (it has no public name)
            raise ChangesWeightError(f"{func} changes a weight that is read from a file")
        return func(*_converted(args), **_converted(kwargs))


def _mapped(kind: type[Tensor], function: Callable[[Any], Any], arguments: Any) -> Any:
    """Apply a function to each tensor of a kind among the arguments or results of an operation.

    They nest in lists, tuples and dicts only. torch's pytrees know more containers and took a third of the time to
    verify a small model (`python tests/family_table.py Mistral4`).
    """
    if isinstance(arguments, kind):
        return function(arguments)
    if type(arguments) in (list, tuple):
        return type(arguments)([_mapped(kind, function, each) for each in arguments])
    if type(arguments) is dict:
        return {key: _mapped(kind, function, each) for key, each in arguments.items()}
    return arguments


def _weights(arguments: Any) -> list[StreamedWeight]:
    found: list[StreamedWeight] = []
    _mapped(StreamedWeight, found.append, arguments)
    return found


def _converted(arguments: Any) -> Any:
    return _mapped(StreamedWeight, StreamedWeight.values, arguments)


def _moved(func: Any, args: Any, kwargs: Any, weights: list[StreamedWeight]) -> Any:
    """Apply an operation to the stored elements."""
    if any(type(each) is Tensor for each in (args[0] if isinstance(args[0], (list, tuple)) else ())):
        return func(*_converted(args), **_converted(kwargs))  # joined with an ordinary tensor
    first, files = weights[0], tuple(dict.fromkeys(file for weight in weights for file in weight.files))
    result = func(*_mapped(StreamedWeight, lambda weight: weight.stored, args), **kwargs)
    return _mapped(Tensor, lambda moved: StreamedWeight(moved, first.dtype, first.device, files), result)


def _product(matrix: Tensor, weight: Tensor) -> Tensor:
    """Multiply matrices of shapes (m, k) and (k, n), some columns of the weight at a time.

    Threads take a piece each. torch's own would share every piece, and wait for each other at the end of it: on two
    cores that other processes use too, a product took 5 times the processor time (tests/benchmarks/default.py).
    """
    if not isinstance(weight, StreamedWeight) or isinstance(matrix, StreamedWeight):
        return torch.mm(*_converted((matrix, weight)))
    result = torch.empty(matrix.shape[0], weight.shape[1], dtype=weight.dtype, device=weight.device)
    pieces = list(_pieces(weight.shape[1], weight.shape[0]))

    def worker() -> Callable[[slice], None]:
        buffer = torch.empty_like(weight.stored[:, pieces[0]], dtype=weight.dtype, device=weight.device)

        def multiply(columns: slice) -> None:
            weight.require_whole()
            piece = buffer[:, : columns.stop - columns.start].copy_(weight.stored[:, columns].to(weight.device))
            torch.mm(matrix, piece, out=result[:, columns])

        return multiply

    run_jobs(pieces, [worker() for _ in range(min(num_threads(), len(pieces)))])
    weight.release()
    return result


def _product_and_sum(bias: Tensor, matrix: Tensor, weight: Tensor) -> Tensor:
    return _product(matrix, weight).add_(*_converted((bias,)))


def _embedding(weight: Tensor, indices: Tensor, *_: Any) -> Tensor:
    """Convert only the rows that are used."""
    if not isinstance(weight, StreamedWeight):
        return nn.functional.embedding(indices, weight)
    return weight.converted(lambda stored: stored[indices.to(stored.device)])


_PIECEWISE: dict[Any, Callable[..., Tensor]] = {
    _aten.mm.default: _product,
    _aten.addmm.default: _product_and_sum,
    _aten.embedding.default: _embedding,
}


def _pieces(count: int, length: int) -> Iterator[slice]:
    """Divide `count` vectors of a length."""
    step = max(1, _PIECE // max(length, 1))
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def move_streamed(model: nn.Module, device: torch.device) -> None:
    """Move a model to a device: its streamed weights are converted there, and all other tensors are on it."""
    moved: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():  # noqa: SLF001 (shared ones must stay shared)
            if parameter is None:
                continue
            if id(parameter) not in moved:
                moved[id(parameter)] = nn.Parameter(_on(parameter, device), parameter.requires_grad)
            module._parameters[name] = moved[id(parameter)]  # noqa: SLF001
        for name, buffer in module._buffers.items():  # noqa: SLF001
            if buffer is not None:
                held = buffer.values() if isinstance(buffer, StreamedWeight) else buffer
                module._buffers[name] = held.to(device)  # noqa: SLF001


def _on(parameter: Tensor, device: torch.device) -> Tensor:
    if isinstance(parameter, StreamedWeight):
        return StreamedWeight(parameter.stored, parameter.dtype, device, parameter.files)
    return parameter.detach().to(device)


def change(parameter: Tensor, function: Callable[[Tensor], Tensor]) -> None:
    """Replace the elements of a parameter by a function of them, of the same shape and any floating-point type.

    Those of a streamed weight are computed when an operation reads them.
    """
    if not isinstance(parameter, StreamedWeight):
        parameter.data.copy_(function(parameter.detach()))
        return
    before = parameter.change
    parameter.change = function if before is None else lambda stored: function(before(stored))


@contextmanager
def doubled(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Multiply parameters by 2 while the context is open."""
    before = [(parameter, getattr(parameter, "change", None)) for parameter in parameters]
    for parameter, _ in before:
        change(parameter, lambda values: values.double() * 2)
    try:
        yield
    finally:
        for parameter, previous in before:
            if isinstance(parameter, StreamedWeight):
                parameter.change = previous
            else:
                parameter.data.div_(2)

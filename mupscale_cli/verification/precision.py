"""Running a reference implementation in float64 throughout, and what error remains then."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from mupscale_cli.dtypes import DTYPES, FLOATS, dtype_of
from mupscale_cli.plan import Plan

_LOW = tuple(dtype.torch for dtype in FLOATS.values() if dtype.torch != torch.float64)
_CASTS = (torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16)
# These read or reinterpret bytes, so their type is that of the data and not a choice.
_BYTES = (torch.frombuffer, torch.Tensor.view, torch.Tensor.view_as)
_LAMBDA = 8.0


class _Float64Mode(TorchFunctionMode):
    """Turns every request for a lower float type into one for float64.

    Reference models compute norms, softmax and rotary tables in float32 whatever their type is,
    which leaves a floor of about 1e-6 under every comparison; wrong rules hide below it.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _CASTS:
            return args[0].double()
        if func not in _BYTES:
            args = tuple(_raised(value) for value in args)
            kwargs = {key: _raised(value) for key, value in kwargs.items()}
        return func(*args, **kwargs)


def _raised(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value in _LOW else value


@contextmanager
def everything_in(dtype: torch.dtype) -> Iterator[None]:
    """Make `dtype` the default type, and for float64 the only one.

    The default type of the process is restored.
    """
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        if dtype is torch.float64:
            with _Float64Mode():
                yield
        else:
            yield
    finally:
        torch.set_default_dtype(previous)


def tolerance(plan: Plan, dtype: torch.dtype) -> tuple[float, str]:
    """The largest relative difference that rounding explains, and why.

    Both models do the same sums in another order. A sum of n products in a type of unit roundoff u
    has a relative error of at most lambda u sqrt(n), with a probability of at least
    1 - 2 n exp(-lambda^2 / 2) (Higham & Mary, SIAM J. Sci. Comput. 41(5), 2019, theorem 3.1); with
    lambda = 8 the exception is one in 10^10 for n = 10^4. To first order the errors of L products in
    a row add up, at worst linearly. Products of float16 and bfloat16 are summed in float32 and the
    result is rounded once, so n counts as 1 for them.

    Args:
        plan: for the number and the length of the sums.
        dtype: in which the models run.

    Returns:
        The tolerance (dimensionless) and a line that explains it.
    """
    products = [tensor for tensor in plan.tensors if len(tensor.target.shape) >= 2]
    longest = max((_sum_length(tensor.target.shape) for tensor in products), default=1)
    computing = dtype_of(dtype)
    length = 1 if computing.size == 2 else longest
    depth = max(1, len(products))
    unit, name = computing.unit_roundoff, computing.torch_name
    reason = f"8 u L sqrt(n): u = {unit:.1e} ({name}), L = {depth} products, longest sum n = {length}"
    return _LAMBDA * unit * depth * math.sqrt(length), reason


def stored_tolerance(plan: Plan, dtype: torch.dtype) -> tuple[float, str]:
    """The same for noise that cancels, whose last share is rounded in the type that it is stored in.

    That changes the weights by about one unit roundoff of theirs each, which a product passes on as it is.

    Returns:
        The tolerance (dimensionless) and a line that explains it.
    """
    computing, reason = tolerance(plan, dtype)
    noisy = [DTYPES[tensor.target.dtype] for tensor in plan.tensors if tensor.noise is not None]
    if not noisy:
        return computing, reason
    stored = max(noisy, key=lambda stored: stored.unit_roundoff)
    depth = max(1, sum(len(tensor.target.shape) >= 2 for tensor in plan.tensors))
    allowed = _LAMBDA * stored.unit_roundoff * depth
    if allowed <= computing:
        return computing, reason
    return (
        allowed,
        f"8 u L: u = {stored.unit_roundoff:.1e} ({stored.name}, in which noise is stored), L = {depth} products",
    )


def _sum_length(shape: tuple[int, ...]) -> int:
    """The longer side of a matrix, or what a kernel sums over, whichever way it is stored."""
    return max(shape[0], math.prod(shape[1:]))

"""Running a reference implementation in float64 throughout, and bounding the rounding error that remains."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from mupscale_cli.dtypes import DTYPES, FLOATS, DType, dtype_of
from mupscale_cli.plan import Plan, TensorPlan
from mupscale_cli.verification.result import Comparison

_LOW = frozenset(dtype.torch for dtype in FLOATS.values() if dtype.torch != torch.float64)
_CASTS = frozenset({torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16})
# These read or reinterpret bytes: the data determine their type.
_BYTES = frozenset({torch.frombuffer, torch.Tensor.view, torch.Tensor.view_as})
_LAMBDA = 8.0


class _Float64Mode(TorchFunctionMode):
    """Replaces every request for a lower floating-point type by float64.

    Reference models always compute norms, softmax and rotary tables in float32. That limits every comparison
    to a relative accuracy of about 1e-6, which could hide a wrong rule.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Every operation of a model passes here, so this does nothing more than it must.
        if func in _CASTS:
            return args[0].double()
        if func in _BYTES:
            return func(*args, **(kwargs or {}))
        args = [torch.float64 if type(value) is torch.dtype and value in _LOW else value for value in args]
        if not kwargs:
            return func(*args)
        for key, value in kwargs.items():
            if type(value) is torch.dtype and value in _LOW:
                kwargs = {**kwargs, key: torch.float64}
        return func(*args, **kwargs)


@contextmanager
def everything_in(dtype: torch.dtype) -> Iterator[None]:
    """Make `dtype` torch's default type for a block. If it is float64, nothing in the block uses a lower one."""
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


def rounding_factor(plan: Plan, dtype: torch.dtype) -> tuple[float, str]:
    """Return how many unit roundoffs the rounding of one product may amount to.

    A sum of n products in a type of unit roundoff u has a relative error of at most lambda u sqrt(n), with a
    probability of at least 1 - 2 n exp(-lambda^2 / 2) (Higham & Mary, SIAM J. Sci. Comput. 41(5), 2019, theorem 3.1).
    With lambda = 8 and n = 10^4, it is exceeded with a probability of 10^-10. Products of float16 and bfloat16 are
    summed in float32 and rounded once, so their n is 1.

    Args:
        plan: provides the length of the sums.
        dtype: type in which the models run.

    Returns:
        lambda sqrt(n) (dimensionless) and its formula with figures.
    """
    longest = max((_sum_length(tensor.target.shape) for tensor in _products(plan)), default=1)
    length = 1 if dtype_of(dtype).size == 2 else longest
    return _LAMBDA * math.sqrt(length), f"8 sqrt(n), n = {length}"


def tolerance(plan: Plan, dtype: torch.dtype, executions: Mapping[str, int] | None = None) -> tuple[float, str]:
    """Return the largest relative difference that rounding can explain if no module enlarges what it is given.

    Both models compute the same sums in a different order. To first order, the errors of L consecutive products add
    up, at worst linearly. A product counts as often as it is computed: the layers of some models run repeatedly.

    Args:
        plan: provides the number and the length of the sums.
        dtype: type in which the models run.
        executions: by name of a stored tensor, how often its product is computed in a pass. Default: once.

    Returns:
        The tolerance (dimensionless) and a line that explains it.
    """
    factor, formula = rounding_factor(plan, dtype)
    counts = executions or {}
    depth = max(1, sum(max(1, counts.get(tensor.source.name, 1)) for tensor in _products(plan)))
    compute_type = dtype_of(dtype)
    unit, name = compute_type.unit_roundoff, compute_type.torch_name
    length = formula.rpartition(" ")[2]
    reason = f"8 u L sqrt(n): u = {unit:.1e} ({name}), L = {depth} products, longest sum n = {length}"
    return factor * unit * depth, reason


def _products(plan: Plan) -> list[TensorPlan]:
    return [tensor for tensor in plan.tensors if len(tensor.target.shape) >= 2]


def module_tolerance(plan: Plan, dtype: torch.dtype, response: Comparison) -> tuple[float, str]:
    """Return the largest relative difference that rounding can explain if no differences add up.

    Args:
        plan: provides the length of the sums.
        dtype: type in which the models run.
        response: the largest change of an output of the narrow model if one rounding changes every output before it.

    Returns:
        The tolerance (dimensionless) and a line that explains it.
    """
    factor, formula = rounding_factor(plan, dtype)
    name = dtype_of(dtype).torch_name
    reason = (
        f"{factor:.3g} x {response.max_rel:.1e}: {formula}; one rounding to {name} changes `{response.what}` by that"
    )
    return factor * response.max_rel, reason


def measured_tolerance(plan: Plan, dtype: torch.dtype, response: Comparison) -> tuple[float, str]:
    """Return the largest relative difference that rounding can explain if modules enlarge what they are given.

    Args:
        plan: provides the length of the sums.
        dtype: type in which the models run.
        response: the largest change of an output of the narrow model if one rounding changes the output of every
            module, and these changes add up.

    Returns:
        The tolerance (dimensionless) and a line that explains it.
    """
    factor, formula = rounding_factor(plan, dtype)
    name = dtype_of(dtype).torch_name
    cause = f"one rounding to {name} in every module changes `{response.what}` by that"
    return factor * response.max_rel, f"{factor:.3g} x {response.max_rel:.1e}: {formula}; {cause}"


def noise_tolerance(plan: Plan, dtype: torch.dtype, response: Comparison) -> tuple[float, str]:
    """Return the tolerance for weights with noise that cancels, which is larger than `module_tolerance`.

    The last share of such noise is rounded to the stored type. This changes each weight by about one unit roundoff
    of that type, and a product passes the relative error on unchanged.

    Returns:
        The tolerance (dimensionless) and a line that explains it.
    """
    of_computing, reason = module_tolerance(plan, dtype, response)
    stored = noise_type(plan)
    if stored is None:
        return of_computing, reason
    change = response.max_rel * stored.unit_roundoff / dtype_of(dtype).unit_roundoff
    if _LAMBDA * change <= of_computing:
        return of_computing, reason
    cause = f"one rounding to {stored.torch_name}, the type of stored noise, changes `{response.what}` by that"
    return _LAMBDA * change, f"8 x {change:.1e} for each module by itself: {cause}"


def noise_type(plan: Plan) -> DType | None:
    """Return the least precise type in which noise is stored; None if there is no noise."""
    noisy = (DTYPES[tensor.target.dtype] for tensor in plan.tensors if tensor.noise is not None)
    return max(noisy, key=lambda dtype: dtype.unit_roundoff, default=None)


def deciding_type(plan: Plan, dtype: torch.dtype, response: Comparison, limit: float) -> str:
    """Name the least precise type whose `module_tolerance` would not exceed a limit.

    Args:
        plan: provides the length of the sums.
        dtype: type in which the response was measured; it is proportional to the type's unit roundoff.
        response: see `module_tolerance`.
        limit: largest tolerance (dimensionless).
    """
    relative = response.max_rel / dtype_of(dtype).unit_roundoff
    types = sorted(FLOATS.values(), key=lambda each: -each.unit_roundoff)
    enough = (
        each.torch_name
        for each in types
        if rounding_factor(plan, each.torch)[0] * relative * each.unit_roundoff <= limit
    )
    return next(enough, "float64")


def _sum_length(shape: tuple[int, ...]) -> int:
    """Return the longest sum of a product: the longer side of a matrix, whether or not it is stored transposed."""
    return max(shape[0], math.prod(shape[1:]))

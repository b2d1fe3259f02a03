"""Choosing the data type and the device that both models run in and on."""

from __future__ import annotations

import gc
from dataclasses import dataclass

import torch

from mupscale_cli.dtypes import FLOATS
from mupscale_cli.engine.memory import free_memory, inference_bytes
from mupscale_cli.errors import VerifyError
from mupscale_cli.plan import Plan
from mupscale_cli.verification.result import CannotVerify


@dataclass(frozen=True, slots=True)
class Placement:
    """The data type and the device in and on which a model runs."""

    dtype: torch.dtype
    device: torch.device

    def __str__(self) -> str:
        """Return the name of the device."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type


def choose_placement(plan: Plan, dtype: str, device: str, *, is_streamed: bool) -> Placement:
    """Choose the data type and the device of both models, which run one at a time.

    Args:
        plan: provides the sizes of the models.
        dtype: `auto` or a key of `dtypes.FLOATS`; `auto` is float64 if the models fit, else float32.
        device: `auto` or a torch device. `auto` is the GPU if there is one.
        is_streamed: whether weights are converted when they are used, so that the largest must fit, not all of them.

    Raises:
        VerifyError: the device cannot be used.
        CannotVerify: there is not enough memory.
    """
    candidates = [dtype] if dtype != "auto" else ["float64", "float32"]
    chosen = choose_device(device)
    free = free_bytes(chosen)
    largest = max((tensor.target.num_elements for tensor in plan.tensors), default=0)
    elements = inference_bytes(largest if is_streamed else max(plan.num_parameters), 1)
    for candidate in candidates:
        if free is None or elements * FLOATS[candidate].size <= free:
            return Placement(FLOATS[candidate].torch, chosen)
    raise out_of_memory(elements * FLOATS[candidates[-1]].size, candidates[-1], chosen)


def choose_device(name: str) -> torch.device:
    """Return the torch device of a name; `auto` is the GPU if there is one, else the CPU.

    Raises:
        VerifyError: the device cannot be used.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise VerifyError(f"cannot use device `{name}`: {str(error).splitlines()[0]}") from error
    return device


def check_memory(needed: float, what: str, device: torch.device) -> None:
    """Check that a device has enough free memory.

    Args:
        needed: bytes that the models take.
        what: what they are kept in, for the message: a type, or a type "with gradients".
        device: device that holds them.

    Raises:
        CannotVerify: fewer bytes are free.
    """
    free = free_bytes(device)
    if free is not None and needed > free:
        raise out_of_memory(needed, what, device)


def out_of_memory(needed: float, what: str, device: torch.device) -> CannotVerify:
    """Return the error for models that take more bytes than a device has free; see `check_memory`."""
    free = free_bytes(device) or 0
    name = str(Placement(torch.float64, device))
    return CannotVerify(f"the models need {needed / 1e9:.1f} GB in {what}, but {name} has {free / 1e9:.1f} GB free")


def free_bytes(device: torch.device) -> int | None:
    """Return the bytes that this process can still allocate on a device; None if the system does not report it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_memory()


def free_unused(device: torch.device) -> None:
    """Return the memory of deleted models to a device: modules refer to each other, and torch keeps freed blocks."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()

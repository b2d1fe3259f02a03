"""Where a model runs: on one device, spread over several, or read from the disk module by module."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import torch

from mupscale_cli.dtypes import FLOATS
from mupscale_cli.engine.memory import free_memory, inference_bytes
from mupscale_cli.errors import VerifyError
from mupscale_cli.plan import Plan
from mupscale_cli.verification.result import CannotVerify

DISK, SPREAD = "disk", "spread"


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the weights of a model are while it runs.

    Attributes:
        device: where it computes, or its first part does.
        over: `disk`, where every module reads its weights when it runs; `spread` over all GPUs, then memory,
            then disk; None for all of it on the device.
    """

    device: torch.device
    over: str | None = None

    @property
    def device_map(self) -> str | dict[str, str] | None:
        """As `from_pretrained` of transformers takes it."""
        if self.over is None:
            return None
        return {"": "disk"} if self.over == DISK else "auto"

    def __str__(self) -> str:
        where = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        if self.over == DISK:
            return f"{where}, weights read from disk"
        return f"{torch.cuda.device_count()} x {where}" if self.over == SPREAD else where


@dataclass(frozen=True, slots=True)
class Placed:
    """The type in which two models are compared, and where each of them is."""

    dtype: torch.dtype
    narrow: Placement
    wide: Placement


def place(plan: Plan, dtype: str, device: str, *, can_offload: bool) -> Placed:
    """Choose type and places; one model is loaded at a time.

    Args:
        plan: for the sizes of the models.
        dtype: `auto` or a key of `dtypes.FLOATS`; `auto` is float64 where the models fit, else float32, and
            float64 again for weights that are read from disk.
        device: `auto`, `disk`, `spread`, or one of torch's names. `auto` is the GPU where there is one; a
            model that does not fit is spread over all of them, or read from disk.
        can_offload: whether the models are transformers' own, which can be anywhere but on one device.

    Raises:
        VerifyError: there is no such type or device.
        CannotVerify: there is not enough memory.
    """
    candidates = [dtype] if dtype != "auto" else ["float64", "float32"]
    for candidate in candidates:
        if candidate not in FLOATS:
            raise VerifyError(
                f"there is no data type `{candidate}` to verify in", hint=f"known: auto, {', '.join(FLOATS)}"
            )
    if device in (DISK, SPREAD) and not can_offload:
        raise VerifyError(
            f"`--device {device}` is for models of transformers; one of your own runs on one device",
            hint="give `--device cpu` or `--device cuda`",
        )
    one = Placement(choose_device("auto" if device in (DISK, SPREAD) else device))
    free = free_bytes(one.device)
    narrow, wide = (inference_bytes(parameters, 1) for parameters in plan.num_parameters)
    if device not in (DISK, SPREAD):
        for candidate in candidates:
            if free is None or max(narrow, wide) * FLOATS[candidate].size <= free:
                return Placed(FLOATS[candidate].torch, one, one)
    if not can_offload or device not in ("auto", DISK, SPREAD):
        raise too_large(max(narrow, wide) * FLOATS[candidates[-1]].size, candidates[-1], one.device)
    if importlib.util.find_spec("accelerate") is None:
        raise CannotVerify("a model that does not fit on one device needs accelerate: `pip install 'mupscale[hf]'`")
    several = one.device.type == "cuda" and torch.cuda.device_count() > 1
    apart = _apart(device if device != "auto" else SPREAD if several else DISK)
    chosen = FLOATS[candidates[0]]
    return Placed(chosen.torch, one if free is None or narrow * chosen.size <= free else apart, apart)


def _apart(over: str) -> Placement:
    """What is read from disk computes in memory, since that is where it is read to."""
    if over == SPREAD and not torch.cuda.is_available():
        raise VerifyError("`--device spread` is for GPUs, and there is none", hint="give `--device disk` or `auto`")
    return Placement(torch.device("cuda" if over == SPREAD else "cpu"), over)


def one_device(name: str) -> torch.device:
    """The device that a model is trained on.

    Raises:
        VerifyError: it cannot be used, or is more than one.
    """
    if name in (DISK, SPREAD):
        raise VerifyError(f"`--steps` trains on one device, not on `{name}`", hint="give `--device cpu` or `cuda`")
    return choose_device(name)


def choose_device(name: str) -> torch.device:
    """One device by torch's name of it; `auto` is the GPU if there is one.

    Raises:
        VerifyError: it cannot be used.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise VerifyError(f"the device `{name}` cannot be used: {str(error).splitlines()[0]}") from error
    return device


def check_memory(needed: float, what: str, device: torch.device) -> None:
    """Refuse what does not fit.

    Raises:
        CannotVerify: it takes more bytes than are free.
    """
    free = free_bytes(device)
    if free is not None and needed > free:
        raise too_large(needed, what, device)


def too_large(needed: float, what: str, device: torch.device) -> CannotVerify:
    """That something takes more bytes than a device has."""
    free = free_bytes(device) or 0
    return CannotVerify(
        f"the models take {needed / 1e9:.1f} GB in {what}, {Placement(device)} has {free / 1e9:.1f} GB free"
    )


def free_bytes(device: torch.device) -> int | None:
    """Memory that this process may still take on a device; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_memory()

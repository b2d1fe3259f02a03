"""Placing a model on one device, spreading it over several, or reading its weights from disk module by module."""

from __future__ import annotations

import gc
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
    """Location of a model's weights while it runs.

    Attributes:
        device: device that computes the model, or its first part.
        offload: `disk` if every module reads its weights from disk when it runs; `spread` if the weights are on all
            GPUs, then in memory, then on disk; None if the whole model is on `device`.
    """

    device: torch.device
    offload: str | None = None

    @property
    def device_map(self) -> str | dict[str, str] | None:
        """The argument `device_map` for transformers' `from_pretrained`."""
        if self.offload is None:
            return None
        return {"": "disk"} if self.offload == DISK else "auto"

    def __str__(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        if self.offload == DISK:
            return f"{name}, weights read from disk"
        return f"{torch.cuda.device_count()} x {name}" if self.offload == SPREAD else name


@dataclass(frozen=True, slots=True)
class Placements:
    """Data type and location of the two models of a comparison."""

    dtype: torch.dtype
    narrow: Placement
    wide: Placement


def choose_placements(plan: Plan, dtype: str, device: str, *, can_offload: bool) -> Placements:
    """Choose the data type and the location of both models, which are loaded one at a time.

    Args:
        plan: provides the sizes of the models.
        dtype: `auto` or a key of `dtypes.FLOATS`; `auto` is float64 if the models fit or are offloaded, else
            float32.
        device: `auto`, `disk`, `spread`, or a torch device. `auto` is the GPU if there is one; a model that does
            not fit is spread over all GPUs if there are several, else read from disk.
        can_offload: whether transformers builds the models; a user-defined model must fit on one device.

    Raises:
        VerifyError: the type or the device is unknown or cannot be used.
        CannotVerify: there is not enough memory, or offloading needs accelerate, which is not installed.
    """
    candidates = [dtype] if dtype != "auto" else ["float64", "float32"]
    for candidate in candidates:
        if candidate not in FLOATS:
            raise VerifyError(f"unknown data type `{candidate}`", hint=f"known: auto, {', '.join(FLOATS)}")
    if device in (DISK, SPREAD) and not can_offload:
        raise VerifyError(
            f"`--device {device}` works only for transformers models, not with `--model`",
            hint="use `--device cpu` or `--device cuda`",
        )
    whole = Placement(choose_device("auto" if device in (DISK, SPREAD) else device))
    free = free_bytes(whole.device)
    narrow, wide = (inference_bytes(parameters, 1) for parameters in plan.num_parameters)
    if device not in (DISK, SPREAD):
        for candidate in candidates:
            if free is None or max(narrow, wide) * FLOATS[candidate].size <= free:
                return Placements(FLOATS[candidate].torch, whole, whole)
    if not can_offload or device not in ("auto", DISK, SPREAD):
        raise out_of_memory(max(narrow, wide) * FLOATS[candidates[-1]].size, candidates[-1], whole.device)
    if importlib.util.find_spec("accelerate") is None:
        raise CannotVerify("offloading a model needs accelerate; run `pip install 'mupscale[hf]'`")
    several = whole.device.type == "cuda" and torch.cuda.device_count() > 1
    offloaded = _offloaded(device if device != "auto" else SPREAD if several else DISK)
    chosen = FLOATS[candidates[0]]
    narrow_fits = free is None or narrow * chosen.size <= free
    return Placements(chosen.torch, whole if narrow_fits else offloaded, offloaded)


def _offloaded(offload: str) -> Placement:
    """Return the placement of an offloaded model. Weights from disk are read into memory, so the CPU computes it."""
    if offload == SPREAD and not torch.cuda.is_available():
        raise VerifyError(
            "`--device spread` needs a GPU, but torch finds none", hint="use `--device disk` or `--device auto`"
        )
    return Placement(torch.device("cuda" if offload == SPREAD else "cpu"), offload)


def training_device(name: str) -> torch.device:
    """Return the device to train on, as `choose_device` does.

    Raises:
        VerifyError: it cannot be used, or is `disk` or `spread`.
    """
    if name in (DISK, SPREAD):
        raise VerifyError(
            f"`--steps` trains on one device, not on `{name}`", hint="use `--device cpu` or `--device cuda`"
        )
    return choose_device(name)


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
    return CannotVerify(
        f"the models need {needed / 1e9:.1f} GB in {what}, but {Placement(device)} has {free / 1e9:.1f} GB free"
    )


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

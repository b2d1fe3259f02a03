"""Independence from the default data type and device that a process may have chosen for its own tensors."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def plain_defaults() -> Iterator[None]:
    """Run a block with torch's own defaults, float32 on the CPU, and restore those of the process afterwards.

    Results must not depend on `torch.set_default_dtype` and `torch.set_default_device`: a training script may have
    called either. torch is not imported, since only an imported torch can have other defaults.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    if dtype == torch.float32 and device.type == "cpu":
        yield
        return
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)

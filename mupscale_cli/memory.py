"""How much memory each kind of work takes, and how much is free. No torch: plans tell it before anything runs."""

from __future__ import annotations

import os

WIDENING = 500_000_000  # bytes, whatever the model's size: blocks, buffers and torch itself
OVERHEAD = 1.2  # of a model that is run: activations, and what loading holds beside the weights
TRAINING_COPIES = 6  # of a model that is trained: weights, gradients, up to three entries of state, a step's own


def comparing_bytes(num_parameters: int, element_bytes: int) -> float:
    """Memory to run a model once, in bytes.

    Args:
        num_parameters: of the larger of both models; they are run one after the other.
        element_bytes: of the type that they run in.
    """
    return OVERHEAD * num_parameters * element_bytes


def training_bytes(num_parameters: int) -> int:
    """Memory to train both models side by side in float64, in bytes; of both together is their number."""
    return TRAINING_COPIES * num_parameters * 8


def free_bytes() -> int | None:
    """Memory that is free on this machine; None where the system does not tell."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            fields = dict(line.split(":", 1) for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None

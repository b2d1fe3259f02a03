"""The processor cores that this process may use. No torch."""

from __future__ import annotations

import os

MAX_WORKERS = 4  # fewer already keep a disk busy


def num_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

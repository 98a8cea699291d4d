"""What this machine has."""

import os
from typing import Literal

MOST_THREADS = 16


def num_cpus() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def num_threads(wanted: int | Literal["auto"] = "auto") -> int:
    """Threads that decode images: as many as wanted, or one for each processor, at most 16."""
    return min(MOST_THREADS, num_cpus()) if wanted == "auto" else wanted

"""What this machine has."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Literal

MOST_THREADS = 16
_CGROUP = Path("/sys/fs/cgroup")


def num_cpus() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def num_threads(wanted: int | Literal["auto"] = "auto") -> int:
    """Threads that decode images: as many as wanted, or one for each processor, at most 16."""
    return min(MOST_THREADS, num_cpus()) if wanted == "auto" else wanted


def available_memory_bytes() -> int | None:
    """Memory that this process may still take: the system's, or the container's where that is less; None if unknown."""
    found = []
    with suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    with suppress(OSError, ValueError):  # "max" where the container has no limit
        limit, used = (int((_CGROUP / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
        found.append(limit - used)
    if not found:
        with suppress(AttributeError, OSError, ValueError):
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    return max(0, min(found)) if found else None

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


def ram_bytes() -> int | None:
    """What this process may use of the machine's memory, in bytes: its control group's limit, or all there is."""
    total = None
    if hasattr(os, "sysconf") and {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= set(os.sysconf_names):
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        if (limit := _of_group(name)) is not None:
            total = min(limit, total) if total else limit
    return total


def available_memory_bytes() -> int | None:
    """Memory that this process may still take: the system's, or the container's where that is less; None if unknown."""
    found = []
    with suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    limit, used = _of_group("memory.max"), _of_group("memory.current")
    if limit is not None and used is not None:
        found.append(limit - used)
    if not found and (total := ram_bytes()):
        found.append(total // 2)
    return max(0, min(found)) if found else None


def _of_group(name: str) -> int | None:
    """A figure of this process's control group; None without one, or where it is "max", no limit."""
    with suppress(OSError, ValueError):
        return int((_CGROUP / name).read_text(encoding="ascii"))
    return None

"""What a training takes of the machine: waiting for data, memory at its peak, and what to change."""

import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from foveal.machine import num_cpus, ram_bytes
from foveal.training.config import ResolvedConfig

MIB = 1 << 20
SAMPLE_SECONDS = 0.5

MUCH_WAITING = 0.10
ROOMY_GPU, FULL_GPU, FULL_RAM = 0.4, 0.95, 0.9

_PROC = Path("/proc")


class Resources:
    """Memory and waiting since the training began.

    The operating system keeps a process's peak of resident memory, which counts pages of mapped files such as the
    store's as well; it can take these back. Where it exceeds what it was at the start, it is exact; before that, and
    for child processes, what `sample` has seen counts.

    Args:
        device: where the training runs; the peak of its memory is set back here.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._waited_seconds = self._step_seconds = 0.0
        self._peak_at_start = peak_resident_bytes()
        self._largest = 0
        self._sampled_at = -SAMPLE_SECONDS
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self.sample()

    def step(self, *, waited_seconds: float, seconds: float) -> None:
        """Count a step; memory is looked at twice a second at most, so that this can be called after every one.

        Args:
            waited_seconds: how long it waited for its batch.
            seconds: how long it took, the waiting included.
        """
        self._waited_seconds += waited_seconds
        self._step_seconds += seconds
        if time.monotonic() - self._sampled_at >= SAMPLE_SECONDS:
            self.sample()

    def sample(self) -> None:
        """Look at the memory of this process and of its children now."""
        self._sampled_at = time.monotonic()
        self._largest = max(self._largest, resident_bytes() or 0)

    def peak_ram_mib(self) -> float | None:
        """Largest resident memory of this process with its children since the start; None where nobody tells."""
        self.sample()
        own = peak_resident_bytes()
        has_grown = own is not None and (self._peak_at_start is None or own > self._peak_at_start)
        largest = max(self._largest, own or 0) if has_grown else self._largest or own or 0
        return round(largest / MIB, 1) if largest else None

    def peak_gpu_mib(self) -> float | None:
        """Largest memory that the GPU's allocator has held since the start; None without a GPU."""
        if self._device.type == "cuda":
            return round(torch.cuda.max_memory_reserved(self._device) / MIB, 1)
        return None

    def to_dict(self) -> dict[str, Any]:
        """The figures by name, for the log: shares in 0..1, memory in MiB, None where unknown."""
        total = gpu_bytes(self._device)
        machine = ram_bytes()
        return {
            "data_wait_share": round(self._waited_seconds / self._step_seconds, 4) if self._step_seconds else None,
            "peak_ram_mib": self.peak_ram_mib(),
            "ram_mib": round(machine / MIB, 1) if machine else None,
            "peak_gpu_mib": self.peak_gpu_mib(),
            "gpu_mib": round(total / MIB, 1) if total else None,
        }


def advice(usage: Mapping[str, Any], config: ResolvedConfig, *, num_train: int) -> list[str]:
    """What to change, one sentence each; nothing where all is well.

    Args:
        usage: as `Resources.to_dict` gives it; of an epoch after the first, which also reads files for the first time.
        config: of the training.
        num_train: training images.
    """
    found = []
    waited = usage.get("data_wait_share")
    if waited is not None and waited > MUCH_WAITING:
        found.append(f"{waited:.0%} of the time the training waited for images: {_less_waiting(config)}.")
    peak_gpu, gpu = usage.get("peak_gpu_mib"), usage.get("gpu_mib")
    if peak_gpu and gpu:
        share = peak_gpu / gpu
        if share < ROOMY_GPU and 2 * config.train.batch_size <= num_train:
            found.append(
                f"The GPU's memory peaked at {share:.0%}: a larger train.batch_size would fit "
                f"({2 * config.train.batch_size}, say; the learning rate may have to grow with it)."
            )
        elif share > FULL_GPU:
            found.append(
                f"The GPU's memory peaked at {share:.0%}, so that little is missing to an error: a smaller "
                "train.batch_size with train.accumulate to match, or train.halve_batch=true."
            )
    peak_ram, ram = usage.get("peak_ram_mib"), usage.get("ram_mib")
    if peak_ram and ram and peak_ram > FULL_RAM * ram:
        found.append(
            f"Memory peaked at {peak_ram / 1024:.1f} of {ram / 1024:.1f} GiB: fewer data.num_workers or a smaller "
            "train.batch_size take less."
        )
    return found


def _less_waiting(config: ResolvedConfig) -> str:
    if config.data.store == "off":
        more = f"raise data.num_workers (it is {config.data.num_workers}), or " if _has_more_cpus(config) else ""
        return f"{more}let the store hold them (data.store=on, with a data.store_cap_gib that is large enough)"
    if _has_more_cpus(config):
        return (
            f"raise data.num_workers (it is {config.data.num_workers}), or put the cache folder (FOVEAL_CACHE_DIR) on "
            "a faster disk"
        )
    return "put the cache folder (FOVEAL_CACHE_DIR) on a faster disk, or give the machine more memory to hold it"


def _has_more_cpus(config: ResolvedConfig) -> bool:
    return config.data.num_workers < num_cpus()


def resident_bytes() -> int | None:
    """Memory of this process and all its descendants now, in bytes; None where the system does not tell.

    On Linux from /proc, children included; on Windows of this process alone. macOS tells the peak and not the present.
    """
    if os.name == "nt":
        return _windows_memory("WorkingSetSize")
    if not sys.platform.startswith("linux"):
        return None
    # A child may end while it is looked at.
    found = [_pages(number) for number in (os.getpid(), *_descendants(os.getpid()))]
    return sum(found) * os.sysconf("SC_PAGE_SIZE") or None


def peak_resident_bytes() -> int | None:
    """Largest memory of this process since it began, in bytes; None where the system does not tell."""
    if os.name == "nt":
        return _windows_memory("PeakWorkingSetSize")
    if sys.platform.startswith("linux"):
        with suppress(OSError):
            for line in (_PROC / "self" / "status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(most if sys.platform == "darwin" else most * 1024) or None


def gpu_bytes(device: torch.device) -> int | None:
    """The GPU's memory in bytes; None without one."""
    if device.type != "cuda":
        return None
    return int(torch.cuda.get_device_properties(device).total_memory)


def _pages(number: int) -> int:
    with suppress(OSError, ValueError, IndexError):
        return int((_PROC / str(number) / "statm").read_text().split()[1])
    return 0


def _descendants(number: int) -> list[int]:
    """Processes that this one has started, and those that these have."""
    found: list[int] = []
    with suppress(OSError):
        for thread in (_PROC / str(number) / "task").iterdir():
            with suppress(OSError, ValueError):
                for child in map(int, (thread / "children").read_text().split()):
                    found += [child, *_descendants(child)]
    return found


def _windows_memory(field: str) -> int | None:
    """A field of PROCESS_MEMORY_COUNTERS of this process.

    Source: Microsoft's documentation of GetProcessMemoryInfo.
    """
    if os.name != "nt":
        return None
    import ctypes
    from ctypes import wintypes

    sizes = (
        *("PeakWorkingSetSize", "WorkingSetSize", "QuotaPeakPagedPoolUsage", "QuotaPagedPoolUsage"),
        *("QuotaPeakNonPagedPoolUsage", "QuotaNonPagedPoolUsage", "PagefileUsage", "PeakPagefileUsage"),
    )

    class Counters(ctypes.Structure):
        _fields_ = [
            ("cb", wintypes.DWORD),
            ("PageFaultCount", wintypes.DWORD),
            *((name, ctypes.c_size_t) for name in sizes),
        ]

    counters = Counters()
    counters.cb = ctypes.sizeof(counters)
    kernel = vars(ctypes)["WinDLL"]("kernel32", use_last_error=True)
    kernel.GetCurrentProcess.restype = wintypes.HANDLE
    kernel.K32GetProcessMemoryInfo.argtypes = [wintypes.HANDLE, ctypes.c_void_p, wintypes.DWORD]
    if not kernel.K32GetProcessMemoryInfo(kernel.GetCurrentProcess(), ctypes.byref(counters), counters.cb):
        return None
    return int(getattr(counters, field))

"""Memory that the C library keeps for itself after it was freed."""

import ctypes
import os
from collections.abc import Callable
from functools import cache


@cache
def _trim() -> Callable[[int], int] | None:
    """The `malloc_trim` of glibc; other C libraries have none."""
    if os.name != "posix":
        return None
    found: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return found


def give_back() -> None:
    """Give the system what was freed.

    Each thread of glibc's keeps what it has freed, up to the most that it ever had: each decoder would for ever hold
    what the largest image took that it has seen, several hundred MiB.
    """
    trim = _trim()
    if trim is not None:
        trim(0)

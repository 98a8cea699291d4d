"""Where foveal keeps what it can compute again: decoded images and the facts about files."""

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """The user's cache folder for foveal: `$FOVEAL_CACHE_DIR`, or the system's usual place."""
    if named := os.environ.get("FOVEAL_CACHE_DIR"):
        return Path(named).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "foveal"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "foveal" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "foveal"

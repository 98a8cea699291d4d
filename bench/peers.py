"""The environment that fastai and CleanVision live in: their own, so that their versions never decide ours."""

import shutil
import subprocess
import sys
from pathlib import Path

from measuring import NotMeasuredError

HERE = Path(__file__).resolve().parent
ENVIRONMENT, REQUIREMENTS = HERE / ".venv-peers", HERE / "requirements-peers.txt"
NEEDED_GB = 8


def peer_python() -> Path:
    """The Python that has them; installed when they are not there.

    Raises:
        NotMeasuredError: they cannot be installed.
    """
    python, ready = ENVIRONMENT / "bin" / "python", ENVIRONMENT / ".ready"
    pinned = REQUIREMENTS.read_text(encoding="utf-8")
    if ready.is_file() and ready.read_text(encoding="utf-8") == pinned:
        return python
    free_gb = shutil.disk_usage(HERE).free / 1e9
    if free_gb < NEEDED_GB:
        raise NotMeasuredError(f"fastai and CleanVision need about {NEEDED_GB} GB of disk, and {free_gb:.0f} are free")
    print(f"installing fastai and CleanVision into {ENVIRONMENT}", file=sys.stderr, flush=True)
    for command in (
        [sys.executable, "-m", "venv", str(ENVIRONMENT)],
        [str(python), "-m", "pip", "install", "--quiet", "--require-hashes", "-r", str(REQUIREMENTS)],
        [str(python), "-W", "ignore", "-c", "import fastai.vision.all, cleanvision"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip() or "no words").splitlines()[-1]
            raise NotMeasuredError(f"fastai and CleanVision cannot be installed here: {last}")
    ready.write_text(pinned, encoding="utf-8")
    return python

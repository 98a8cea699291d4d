"""One real small study that many tests look at, how to ask for another, and a PostgreSQL server for many workers."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from small_runs import CLASSES

SPACE = """
optim.lr: {type: float, low: 1e-3, high: 1e-1, log: true}
optim.name: {type: categorical, choices: [adamw, sgd]}
optim.momentum: {type: float, low: 0.8, high: 0.95, when: {optim.name: sgd}}
"""
AROUND = (
    "model.name=small_cnn",
    "model.weights=none",
    "data.image_size=32",
    "train.epochs=2",
    "train.batch_size=16",
    "train.precision=fp32",
    "train.device=cpu",
)
NUM_TRIALS = 4

_made: dict[str, Path] = {}


def quicken_study(patch: pytest.MonkeyPatch) -> None:
    """Leave out the drawing of plots that have tests of their own."""
    empty = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"></svg>'
    for module in ("foveal.evaluation.plots", "foveal.report.figures"):
        patch.setattr(f"{module}.draw_svg", lambda *_, **__: empty)


def images_of_study(make_images: Callable[..., Path], folder: Path) -> Path:
    """Sixty small images of three classes."""
    return make_images(folder / "images", CLASSES, num_per_class=20)


def small_study(make_images: Callable[..., Path], factory: pytest.TempPathFactory) -> Path:
    """A study of four trials by TPE that was never interrupted; made once, so look but do not touch."""
    if "study" not in _made:
        from foveal.api.tune import tune

        folder = factory.mktemp("small study")
        (folder / "space.yaml").write_text(SPACE)
        tune(
            images_of_study(make_images, folder),
            folder / "study",
            space=folder / "space.yaml",
            trials=NUM_TRIALS,
            pruner="none",
            overrides=AROUND,
        )
        _made["study"] = folder / "study"
    return _made["study"]


def words(images: Path, space: Path, study: Path, *more: str) -> list[str]:
    """The command line of the small study."""
    settings = [word for override in AROUND for word in ("--set", override)]
    return ["tune", str(images), "--space", str(space), "--out", str(study), "--pruner", "none", *settings, *more]


def trials_of(study: Path, url: str | None = None, name: str = "study") -> list[Any]:
    """What the storage holds, read by Optuna itself."""
    import optuna

    storage = optuna.storages.RDBStorage(url or f"sqlite:///{study / 'study.db'}")
    trials = optuna.load_study(study_name=name, storage=storage).get_trials()
    storage.engine.dispose()
    return trials


@contextmanager
def postgres_server() -> Iterator[str]:
    """The URL of an empty database on a server of its own, which ends with the block."""
    binaries = next((b for b in _places() if (b / "initdb").exists() and (b / "postgres").exists()), None)
    if binaries is None:
        pytest.skip("no PostgreSQL server is installed")
    pytest.importorskip("psycopg")
    user = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
    # Not pytest's folder: its name is too long for a socket, and its rights are for its owner alone.
    folder = Path(tempfile.mkdtemp(prefix="foveal-pg-", dir="/tmp"))
    server = None
    try:
        if user:
            shutil.chown(folder, "nobody", "nogroup")
        data = folder / "data"
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT, "cwd": folder, **user}
        made = [str(binaries / "initdb"), "-D", str(data), "-U", "foveal", "-A", "trust", "--no-sync", "-E", "UTF8"]
        subprocess.run([*made, "--locale=C"], check=True, timeout=120, **quiet)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        options = [
            "-h",
            "127.0.0.1",
            "-p",
            str(port),
            "-k",
            str(folder),
            "-c",
            "fsync=off",
            "-c",
            "shared_buffers=16MB",
        ]
        server = subprocess.Popen([str(binaries / "postgres"), "-D", str(data), *options], **quiet)
        url = f"postgresql+psycopg://foveal:secret@127.0.0.1:{port}/postgres"
        _wait_for(url, server)
        yield url
    finally:
        if server is not None:
            server.terminate()
            server.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def _places() -> list[Path]:
    found = shutil.which("initdb")
    return [*([Path(found).resolve().parent] if found else []), *Path("/usr/lib/postgresql").glob("*/bin")]


def _wait_for(url: str, server: "subprocess.Popen[bytes]") -> None:
    import time

    import psycopg

    deadline = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(url.replace("+psycopg", ""), connect_timeout=5).close()
        except psycopg.OperationalError:
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        else:
            return

"""Without a network everything but a first download works, and nothing phones home: not even on import."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from foveal.cli import app
from small_runs import CLASSES, flags

# A fresh process, so that what libraries do on import is seen too. Unix sockets stay: processes talk over them.
PROGRAM = """
import socket, sys

def refuse(kind):
    def call(self, *address, **options):
        if kind == "name" or self.family != socket.AF_UNIX:
            print("TRIED", kind, self if kind == "name" else address, file=sys.stderr, flush=True)
            raise OSError(101, "Network is unreachable")
        return whole[kind](self, *address, **options)
    return call

whole = {name: getattr(socket.socket, name) for name in ("connect", "connect_ex", "sendto")}
for name in whole:
    setattr(socket.socket, name, refuse(name))
socket.getaddrinfo = socket.gethostbyname = socket.gethostbyaddr = refuse("name")

import shlex
from foveal.cli import app
for line in sys.stdin.read().splitlines():
    try:
        app(shlex.split(line), standalone_mode=True)
    except SystemExit as end:
        if end.code:
            sys.exit(f"{line} ended with {end.code}")
"""


def test_the_whole_way_with_blocked_sockets(tmp_path: Path, make_images: Callable[..., Path]) -> None:
    images = make_images(tmp_path / "images", CLASSES, num_per_class=8)
    run = tmp_path / "run"
    settings = " ".join(flags("train.epochs=1"))
    lines = [
        f"train {images} --dry-run {settings}",
        f"train {images} --out {run} {settings}",
        f"evaluate {run} --split val",
        f"predict {run} {images / '2'} --out {tmp_path / 'p.parquet'}",
        "models 'test_res*'",
    ]
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        timeout=200,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert "TRIED" not in done.stderr
    assert (run / "report.html").is_file()
    assert (tmp_path / "p.parquet").is_file()


def test_weights_that_would_have_to_be_fetched_are_said_at_once(
    tmp_path: Path, make_images: Callable[..., Path], no_network: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without HF_HUB_OFFLINE too: one look whether the hub answers, no minutes of retries."""
    images = make_images(tmp_path / "images", CLASSES, num_per_class=8)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    started = time.monotonic()
    words = ["train", str(images), "--out", str(tmp_path / "run"), *flags("model.weights=pretrained")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1
    assert time.monotonic() - started < 60  # the first training of a process imports libraries for seconds
    assert "not in the local cache" in result.stderr
    assert "model.weights=none" in result.stderr
    assert len(no_network) == 1

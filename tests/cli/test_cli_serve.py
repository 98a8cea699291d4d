"""`foveal serve` from the outside: what it says, what it refuses, and how it ends."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from PIL import Image
from typer.testing import CliRunner

import foveal
from foveal.api.serve import plan_serve
from foveal.cli import app
from foveal.errors import ConfigError, FovealError
from foveal.serving.finding import names_of
from plain_export import write_export

TOKEN = "0123456789abcdefghij"


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_export(tmp_path_factory.mktemp("a place") / "signs", num_slow_layers=2)


def failed(*words: object, code: int) -> str:
    result = CliRunner().invoke(app, ["serve", *map(str, words)])
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    assert "Traceback" not in result.stderr
    return " ".join(result.stderr.split())


@contextmanager
def running(*words: object, **environment: str) -> Iterator[tuple["subprocess.Popen[str]", list[str]]]:
    """The process, once it is ready, and the lines that it has written."""
    command = [sys.executable, "-m", "foveal", "serve", *map(str, words), "--port", "0"]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    try:
        lines = [process.stderr.readline().rstrip() for _ in range(4)] if process.stderr else []
        yield process, lines
    finally:
        process.kill()
        process.communicate()


def test_it_says_where_it_serves_and_its_commands_work(export: Path, tmp_path: Path) -> None:
    token = tmp_path / "my token.txt"
    token.write_text(TOKEN)
    photo = tmp_path / "photo.png"
    Image.new("RGB", (30, 20)).save(photo)
    with running(export, "--token-file", token) as (process, lines):
        url = lines[0].removeprefix("foveal serves signs at ")
        assert url.startswith("http://127.0.0.1:")
        for line in lines[2:]:
            done = subprocess.run(
                line.replace("PHOTO.jpg", shlex.quote(str(photo))).replace("curl", "curl --silent", 1),
                shell=True, capture_output=True, text=True, check=True,
            )  # fmt: skip
            assert {"models", "predictions"} & set(json.loads(done.stdout))
        assert httpx.get(f"{url}/v1/models").status_code == 401
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")


def test_all_that_is_no_model_is_told_at_once(export: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    message = failed(export, tmp_path / "empty", tmp_path / "gone", "--port", 0, code=1)
    assert "empty: neither an exported model, nor a run or a bundle" in message
    assert "gone: there is no such file or folder" in message
    assert "foveal export RUN" in message  # neither of these can be exported


def test_a_damaged_model_ends_it_with_the_reason(export: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "model.onnx").write_bytes((export / "model.onnx").read_bytes()[:-200])
    with pytest.raises(FovealError, match=r"model\.onnx"), foveal.Server([export, tmp_path / "bad"]):
        pass


def test_wrong_settings_addresses_and_tokens_are_refused_before_anything_starts(export: Path, tmp_path: Path) -> None:
    message = failed(export, "--set", "serve.max_image=3", "--set", "serve.queue_size=0", code=2)
    assert "serve.max_image: no such key; did you mean serve.max_images?" in message
    assert "serve.queue_size" in message
    assert "no token was given" in failed(export, "--host", "0.0.0.0", "--port", 0, code=2)
    assert "token.txt" in failed(export, "--token-file", tmp_path / "token.txt", code=2)
    assert "--host no.such.host.invalid" in failed(export, "--host", "no.such.host.invalid", code=2)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert "another program listens there" in failed(export, "--port", port, code=2)


def test_the_dry_run_shows_what_would_be_served_and_takes_no_port(export: Path) -> None:
    result = CliRunner().invoke(app, ["serve", str(export), "--dry-run", "--port", "0", "--json"])
    said = json.loads(result.stdout)
    assert said["models"] == {"signs": str(export / "model.onnx")}
    assert said["serve"]["max_images"] == 32
    assert not said["needs_token"]
    plan = plan_serve([export, export], port=0, overrides=["serve.max_images=3"])
    assert "signs-2" in str(plan)
    assert "one request 3 images" in str(plan)


def test_names_are_those_of_folders_and_differ(tmp_path: Path) -> None:
    for name in ("a/export", "b/export", "c/b", "d e"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "d e" / "model.onnx").touch()
    paths = [tmp_path / name for name in ("a/export", "b/export", "c/b", "d e/model.onnx")]
    assert names_of(paths) == ["a", "b", "b-2", "d e"]


def test_a_second_signal_ends_it_at_once(export: Path) -> None:
    settings = ("--set", "serve.drain_seconds=60", "--set", "serve.body_seconds=60")
    with running(export, *settings) as (process, lines):
        port = int(lines[0].rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=30) as slow:
            slow.sendall(
                b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 9\r\n"
                b"Expect: 100-continue\r\n\r\n"
            )
            assert slow.recv(1000).startswith(b"HTTP/1.1 100 ")  # it has the head, and waits for the image
            process.terminate()
            time.sleep(1.0)
            assert process.poll() is None  # it waits for the upload
            process.terminate()
            assert process.wait(20.0) == 143


def test_what_is_under_way_when_the_drain_ends_is_told_so(export: Path) -> None:
    with running(export, "--set", "serve.drain_seconds=0.5", "--set", "serve.body_seconds=60") as (process, lines):
        port = int(lines[0].rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=30) as slow:
            slow.sendall(
                b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 9\r\n"
                b"Expect: 100-continue\r\n\r\n"
            )
            assert slow.recv(1000).startswith(b"HTTP/1.1 100 ")
            start = time.monotonic()
            process.terminate()
            assert slow.recv(1000).startswith(b"HTTP/1.1 503 ")
            assert process.wait(30.0) == 143
            assert time.monotonic() - start < 15.0


def test_a_server_of_a_program_that_is_killed_ends_too(export: Path) -> None:
    code = (
        "import sys, time, foveal\nserver = foveal.Server(sys.argv[1]).start()\n"
        "print(server.url, server.pid, flush=True)\ntime.sleep(60)\n"
    )
    program = subprocess.Popen([sys.executable, "-c", code, str(export)], stdout=subprocess.PIPE, text=True)
    try:
        url, pid = program.stdout.readline().split() if program.stdout else ("", "")
        assert httpx.get(f"{url}/readyz").status_code == 200
    finally:
        program.kill()
        program.communicate()
    end = time.monotonic() + 20.0
    while Path(f"/proc/{pid}").exists() and "zombie" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_within_an_event_loop_it_says_what_to_take(export: Path) -> None:
    import asyncio

    async def main() -> None:
        foveal.serve(export)

    with pytest.raises(ConfigError, match="event loop") as error:
        asyncio.run(main())
    assert "foveal.Server" in str(error.value)

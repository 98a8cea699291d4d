"""Rows 41 to 51 of the faults: a real `foveal serve` process, over real sockets."""

import asyncio
import io
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import foveal
from foveal.exported.engine import OnnxPredictor
from plain_export import write_export

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks at processes in /proc")

PATIENCE_SECONDS = 60.0
MIB = 2**20
MAX_UPLOAD = 2 * MIB
DEADLINE_SECONDS = 1.5
LIMITS = (
    "serve.max_upload_mib=2",
    "serve.max_images=32",
    "serve.queue_size=64",
    f"serve.head_seconds={DEADLINE_SECONDS}",
    f"serve.body_seconds={DEADLINE_SECONDS}",
    "serve.request_seconds=60",
    "serve.max_connections=1200",
    "serve.num_threads=1",
)


def picture(seed: int) -> bytes:
    content = io.BytesIO()
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(content, "PNG")
    return content.getvalue()


PICTURES = [picture(seed) for seed in range(10)]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_export(tmp_path_factory.mktemp("exports") / "signs", num_slow_layers=2)


@pytest.fixture(scope="module")
def server(export: Path) -> Iterator[foveal.Server]:
    with foveal.Server(export, overrides=LIMITS) as running:
        yield running


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def port_of(server: foveal.Server) -> int:
    return int(server.url.rpartition(":")[2])


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS)


def head(method: str, path: str, port: int, headers: Sequence[str] = ()) -> bytes:
    named = {each.partition(":")[0].lower() for each in headers}
    lines = [f"{method} {path} HTTP/1.1", *([] if "host" in named else [f"Host: 127.0.0.1:{port}"]), *headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def read_reply(connection: socket.socket) -> Reply:
    """The answer, whether or not the request is complete."""
    with connection.makefile("rb") as stream:
        status = int(stream.readline().split()[1])
        headers = {}
        while (line := stream.readline().strip()) != b"":
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        return Reply(status, headers, stream.read(int(headers.get("content-length", "0"))))


def ask(
    server: foveal.Server | int,
    method: str = "GET",
    path: str = "/healthz",
    body: bytes = b"",
    headers: Sequence[str] = ("Content-Type: image/png",),
) -> Reply:
    port = server if isinstance(server, int) else port_of(server)
    length = [f"Content-Length: {len(body)}"] if body or method == "POST" else []
    with connect(port) as connection:
        connection.sendall(head(method, path, port, [*headers, *length, "Connection: close"]) + body)
        return read_reply(connection)


def form(parts: Sequence[tuple[str, bytes]]) -> tuple[bytes, list[str]]:
    """A body with parts, each of (further words of its header, content)."""
    boundary = secrets.token_hex(8)
    pieces = [
        f"--{boundary}\r\nContent-Disposition: form-data; {words}\r\n\r\n".encode() + content + b"\r\n"
        for words, content in parts
    ]
    return b"".join(pieces) + f"--{boundary}--\r\n".encode(), [
        f"Content-Type: multipart/form-data; boundary={boundary}"
    ]


def files(contents: Sequence[bytes]) -> tuple[bytes, list[str]]:
    return form([(f'name="image"; filename="{number}.png"', each) for number, each in enumerate(contents)])


def assert_problem(reply: Reply, status: int) -> None:
    assert reply.status == status, reply
    assert reply.headers["content-type"] == "application/problem+json"
    problem = reply.json()
    assert (problem["status"], set(problem) >= {"type", "title", "detail"}) == (status, True)


def workers_of(pid: int | None) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    except OSError:
        return []


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def memory_bytes(server: foveal.Server) -> int:
    total = 0
    for pid in (server.pid, *workers_of(server.pid)):
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
        total += next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
    return total


def until(is_so: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)


def expected(export: Path, contents: Sequence[bytes]) -> list[Any]:
    found = OnnxPredictor(export, num_threads=1)(list(contents))
    assert isinstance(found, list)
    return found


def assert_right(said: Any, wanted: Any) -> None:
    assert (said["status"], said["predicted"]) == ("ok", wanted.predicted)
    assert np.abs(np.array(list(said["probabilities"].values())) - wanted.probabilities).max() <= 1e-6


# --- 41: more than the limit


def test_an_upload_that_says_it_is_too_large_is_refused_before_it_is_sent(server: foveal.Server) -> None:
    for length in (MAX_UPLOAD + 1, 10**15):
        with connect(port_of(server)) as connection:
            headers = ["Content-Type: image/png", f"Content-Length: {length}", "Expect: 100-continue"]
            connection.sendall(head("POST", "/v1/predict", port_of(server), headers))
            assert_problem(read_reply(connection), 413)


@pytest.mark.parametrize("kind", ["image/png", "multipart/form-data; boundary=b"])
def test_an_upload_that_does_not_say_so_is_refused_at_the_limit(server: foveal.Server, kind: str) -> None:
    before = memory_bytes(server)
    sent = 0
    with connect(port_of(server)) as connection:
        headers = [f"Content-Type: {kind}", "Transfer-Encoding: chunked"]
        connection.sendall(head("POST", "/v1/predict", port_of(server), headers))
        start = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' if "form" in kind else b""
        connection.sendall(b"%x\r\n%s\r\n" % (len(start), start) if start else b"")
        chunk = b"10000\r\n" + b"\0" * 0x10000 + b"\r\n"
        connection.settimeout(0.0)
        reply = None
        end = time.monotonic() + PATIENCE_SECONDS
        while sent < 200 * MIB and reply is None and time.monotonic() < end:
            try:
                sent += connection.send(chunk)
                # Whole chunks, however the system cuts them.
                while sent % len(chunk):
                    connection.settimeout(PATIENCE_SECONDS)
                    sent += connection.send(chunk[sent % len(chunk) :])
                    connection.settimeout(0.0)
            except (BlockingIOError, BrokenPipeError, ConnectionResetError):
                time.sleep(0.01)
            try:
                if connection.recv(1, socket.MSG_PEEK):
                    connection.settimeout(PATIENCE_SECONDS)
                    reply = read_reply(connection)
            except BlockingIOError:
                pass
    assert reply is not None
    assert_problem(reply, 413)
    # What is beyond the limit lay in sockets, not in the server.
    assert memory_bytes(server) - before < 24 * MIB
    assert ask(server).status == 200


def test_a_body_that_is_as_large_as_allowed_is_read(server: foveal.Server) -> None:
    # Junk behind its end is no part of a picture, and PNG allows it.
    padded = PICTURES[0] + b"\0" * (MAX_UPLOAD - len(PICTURES[0]))
    assert ask(server, "POST", "/v1/predict", padded).status in {200, 422}
    assert_problem(ask(server, "POST", "/v1/predict", padded + b"\0"), 413)


# --- 42: many parts, other forms


def test_ten_thousand_parts_are_refused_in_bounded_memory(server: foveal.Server) -> None:
    before = memory_bytes(server)
    for words in ('name="image"; filename="a.png"', 'name="field"'):
        body, headers = form([(words, b"x")] * 10_000)
        reply = ask(server, "POST", "/v1/predict", body, headers)
        assert reply.status in {400, 413}
        assert_problem(reply, reply.status)
    assert memory_bytes(server) - before < 24 * MIB


def test_other_kinds_of_body_are_refused(server: foveal.Server) -> None:
    kinds = ("application/x-www-form-urlencoded", "application/json", "text/plain", "multipart/mixed; boundary=a", "")
    for kind in kinds:
        headers = [f"Content-Type: {kind}"] if kind else []
        assert_problem(ask(server, "POST", "/v1/predict", b"image=" + b"a" * 10_000, headers), 415)


# --- 43: slow clients


def test_slow_clients_are_cut_off_at_the_deadline_and_keep_nobody_waiting(server: foveal.Server) -> None:
    port = port_of(server)
    start = time.monotonic()
    slow_heads = [connect(port) for _ in range(60)]
    slow_bodies = [connect(port) for _ in range(60)]
    try:
        for connection in slow_bodies:
            connection.sendall(head("POST", "/v1/predict", port, ["Content-Type: image/png", "Content-Length: 1000"]))
        request = iter(head("POST", "/v1/predict", port, ["Content-Type: image/png"]) * 2)
        while time.monotonic() - start < 2 * DEADLINE_SECONDS:
            asked = time.monotonic()
            assert ask(server).status == 200
            assert time.monotonic() - asked < 5.0
            byte = bytes([next(request)])
            for connection in (*slow_heads, *slow_bodies):
                try:
                    connection.sendall(byte)
                except OSError:
                    continue
            time.sleep(0.3)
        for connection in slow_bodies:
            assert_problem(read_reply(connection), 408)
        for connection in (*slow_heads, *slow_bodies):
            connection.settimeout(PATIENCE_SECONDS)
            try:
                while connection.recv(4096):
                    pass
            except ConnectionResetError:
                pass
        assert time.monotonic() - start < 20.0
    finally:
        for connection in (*slow_heads, *slow_bodies):
            connection.close()


# --- 44: a thousand at once


async def post(port: int, content: bytes, path: str = "/v1/predict") -> Reply:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        headers = ["Content-Type: image/png", f"Content-Length: {len(content)}", "Connection: close"]
        writer.write(head("POST", path, port, headers) + content)
        start = await reader.readuntil(b"\r\n\r\n")
        lines = start.decode("latin-1").split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)}
        body = await reader.readexactly(int(fields["content-length"]))
        return Reply(int(lines[0].split()[1]), fields, body)
    finally:
        writer.close()


def test_of_a_thousand_at_once_each_is_answered_rightly_or_told_to_come_again(
    server: foveal.Server, export: Path
) -> None:
    wanted = expected(export, PICTURES)

    async def round_of_a_thousand() -> list[Reply]:
        asked = [post(port_of(server), PICTURES[number % len(PICTURES)]) for number in range(1000)]
        return await asyncio.wait_for(asyncio.gather(*asked), PATIENCE_SECONDS)

    sizes = []
    for _ in range(2):
        replies = asyncio.run(round_of_a_thousand())
        assert {reply.status for reply in replies} == {200, 503}
        for number, reply in enumerate(replies):
            if reply.status == 200:
                assert_right(reply.json()["predictions"][0], wanted[number % len(PICTURES)])
            else:
                assert_problem(reply, 503)
                assert int(reply.headers["retry-after"]) >= 1
        assert sum(reply.status == 200 for reply in replies) >= 64
        sizes.append(memory_bytes(server))
    assert sizes[1] - sizes[0] < 16 * MIB
    assert ask(server, path="/readyz").status == 200


# --- 45: a bad one among 32


def test_one_bad_image_among_32_fails_alone(server: foveal.Server, export: Path) -> None:
    contents = [picture(seed) for seed in range(32)]
    contents[11] = contents[11][:200]
    reply = ask(server, "POST", "/v1/predict", *files(contents))
    assert reply.status == 200
    said = reply.json()["predictions"]
    assert [each["name"] for each in said] == [f"{number}.png" for number in range(32)]
    assert (said[11]["status"], said[11]["error"]["code"]) == ("failed", "truncated")
    good = [number for number in range(32) if number != 11]
    for number, wanted in zip(good, expected(export, [contents[number] for number in good]), strict=True):
        assert_right(said[number], wanted)
    assert_problem(ask(server, "POST", "/v1/predict", contents[11]), 422)
    body, headers = files(contents + contents[:1])
    assert_problem(ask(server, "POST", "/v1/predict", body, headers), 413)


# --- 46: a client that leaves, a worker that dies


def figure(server: foveal.Server, pattern: str) -> float:
    text = ask(server, path="/metrics").body.decode("utf-8")
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if re.match(pattern, line))


def test_what_a_client_that_leaves_had_queued_is_dropped(server: foveal.Server) -> None:
    done = figure(server, r"foveal_images_total\{")
    body, headers = files([picture(seed) for seed in range(32)])
    for path in ("/v1/predict?tta=64", "/v1/predict?tta=64"):
        with connect(port_of(server)) as connection:
            length = f"Content-Length: {len(body)}"
            connection.sendall(head("POST", path, port_of(server), [*headers, length]) + body)
            until(lambda: figure(server, r"foveal_queue_images\b") > 0)
    until(lambda: figure(server, r"foveal_queue_images\b") == 0)
    assert figure(server, r"foveal_images_total\{") - done < 64


def test_a_killed_worker_is_replaced_and_until_then_the_server_is_not_ready(
    server: foveal.Server, export: Path
) -> None:
    (worker,) = workers_of(server.pid)

    async def under_load() -> list[Reply]:
        asked = [asyncio.create_task(post(port_of(server), PICTURES[number % 10])) for number in range(40)]
        await asyncio.sleep(0.03)
        os.kill(worker, signal.SIGKILL)
        return await asyncio.wait_for(asyncio.gather(*asked), PATIENCE_SECONDS)

    replies = asyncio.run(under_load())
    assert {reply.status for reply in replies} <= {200, 503}
    assert 503 in {reply.status for reply in replies}
    assert all("retry-after" in reply.headers for reply in replies if reply.status == 503)
    assert ask(server).status == 200
    until(lambda: ask(server, path="/readyz").status == 200)
    assert workers_of(server.pid) != [worker]
    reply = ask(server, "POST", "/v1/predict", *files(PICTURES))
    for said, wanted in zip(reply.json()["predictions"], expected(export, PICTURES), strict=True):
        assert_right(said, wanted)


# --- 47, 48: no images by URL, no paths


def test_an_address_or_a_path_is_never_followed(server: foveal.Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as bait:
        bait.settimeout(0.3)
        address = f"http://127.0.0.1:{bait.getsockname()[1]}/photo.png"
        for text in (address, "file:///etc/hostname", "/etc/hostname", "../../../../etc/hostname", "\0"):
            content = text.encode()
            assert_problem(ask(server, "POST", "/v1/predict", content), 422)
            body, headers = form([('name="image"', content)])
            assert ask(server, "POST", "/v1/predict", body, headers).status in {400, 422}
            body, headers = form([(f'name="image"; filename="{address}"', b"no image")])
            assert ask(server, "POST", "/v1/predict", body, headers).status == 422
        as_json = ask(
            server, "POST", "/v1/predict", json.dumps({"url": address}).encode(), ["Content-Type: application/json"]
        )
        assert_problem(as_json, 415)
        for query in (f"url={address}", "path=/etc/hostname", "model=../../x"):
            assert_problem(ask(server, "POST", f"/v1/predict?{query}", PICTURES[0]), 422)
        with pytest.raises(TimeoutError):
            bait.accept()


@pytest.mark.parametrize(
    "path",
    [
        "/assets/..%2f..%2f..%2f..%2fetc%2fhostname",
        "/assets/../../../../etc/hostname",
        "/assets/..%5c..%5cpage.py",
        "/assets/%2e%2e/worker.py",
        "/assets/page.css%00.js",
        "/assets//etc/hostname",
        "/..%2f..%2fetc%2fhostname",
        "/v1/models/..%2f..%2fetc%2fhostname/predict",
        "/v1/models/signs%00/predict",
        "/v1/models//predict",
        "//etc/hostname",
    ],
)
def test_a_path_that_climbs_leads_nowhere(server: foveal.Server, path: str) -> None:
    for method in ("GET", "POST"):
        reply = ask(server, method, path, PICTURES[0] if method == "POST" else b"")
        assert 400 <= reply.status < 500
        assert_problem(reply, reply.status)
        assert socket.gethostname().encode() not in reply.body


def test_a_name_with_a_nul_or_a_path_comes_back_as_text_and_nothing_else(server: foveal.Server) -> None:
    for name in ("../../etc/passwd", "a\\..\\b.png", "<img src=x onerror=alert(1)>.png", "=HYPERLINK(1).png"):
        body, headers = form([(f'name="image"; filename="{name}"', PICTURES[0])] * 2)
        reply = ask(server, "POST", "/v1/predict", body, headers)
        assert reply.status == 200
        assert reply.headers["content-type"] == "application/json"
        assert reply.headers["x-content-type-options"] == "nosniff"


# --- 49, 50: routes, other sites, other hosts


def test_there_are_no_routes_but_the_ones_that_are_described(server: foveal.Server) -> None:
    described = ask(server, path="/openapi.json").json()["paths"]
    assert {(path, method) for path, methods in described.items() for method in methods} == {
        ("/v1/models", "get"), ("/v1/predict", "post"), ("/v1/models/{name}/predict", "post"),
        ("/healthz", "get"), ("/readyz", "get"), ("/metrics", "get"),
    }  # fmt: skip
    for path in ("/admin", "/debug", "/shutdown", "/v1/shutdown", "/v1/load", "/repository/index", "/redoc", "/.env"):
        for method in ("GET", "POST"):
            assert_problem(ask(server, method, path), 404)
    for method in ("PUT", "DELETE", "PATCH"):
        assert_problem(ask(server, method, "/v1/models"), 405)
    assert ask(server, "TRACE", "/v1/models").status == 405


def test_other_sites_and_other_hosts_are_refused(server: foveal.Server) -> None:
    port = port_of(server)
    own = [f"Origin: http://127.0.0.1:{port}", "Content-Type: image/png"]
    assert ask(server, "POST", "/v1/predict", PICTURES[0], own).status == 200
    for origin in ("https://evil.example", "null", f"http://127.0.0.1.evil.example:{port}", "http://localhost.evil"):
        reply = ask(server, "POST", "/v1/predict", PICTURES[0], [f"Origin: {origin}", "Content-Type: image/png"])
        assert_problem(reply, 403)
        assert "access-control-allow-origin" not in reply.headers
        asked = [f"Origin: {origin}", "Access-Control-Request-Method: POST"]
        assert "access-control-allow-origin" not in ask(server, "OPTIONS", "/v1/predict", b"", asked).headers
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "169.254.169.254"):
        for path in ("/", "/v1/models", "/healthz"):
            assert_problem(ask(server, "GET", path, b"", [f"Host: {host}"]), 421)
    assert ask(server, "GET", "/v1/models", b"", [f"Host: localhost:{port}"]).status == 200


def test_an_address_that_others_can_reach_needs_a_token(export: Path) -> None:
    command = [sys.executable, "-m", "foveal", "serve", str(export), "--host", "0.0.0.0", "--port", "0"]
    environment = {name: value for name, value in os.environ.items() if name != "FOVEAL_TOKEN"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    assert done.returncode == 2
    assert "no token was given" in done.stderr
    token = secrets.token_urlsafe(32)
    with foveal.Server(export, host="0.0.0.0", token=token, overrides=LIMITS) as server:
        assert ask(server).status == 200
        for path in ("/v1/models", "/metrics"):
            assert_problem(ask(server, path=path), 401)
            assert_problem(ask(server, path=path, headers=[f"Authorization: Bearer {token[:-1]}x"]), 401)
            assert ask(server, path=path, headers=[f"Authorization: Bearer {token}"]).status == 200
        for path in ("/", "/docs", "/openapi.json", "/healthz", "/readyz"):  # whoever asks these could not send one
            assert ask(server, path=path).status == 200
        reply = ask(server, "POST", "/v1/predict", PICTURES[0])
        assert_problem(reply, 401)
        assert reply.headers["www-authenticate"].startswith("Bearer")
        assert token not in "\n".join(server.log)


# --- 51: before and after


def test_before_the_model_is_loaded_it_is_not_ready_and_says_so(export: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "foveal", "serve", str(export), "--port", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        # Not before it is a program of its own: until then, the server is held up with it.
        until(lambda: any(b"foveal.serving.worker" in command_of(pid) for pid in workers_of(process.pid)))
        (worker,) = workers_of(process.pid)
        os.kill(worker, signal.SIGSTOP)  # while it is loading

        def is_listening() -> bool:
            try:
                return ask(port).status == 200
            except ConnectionRefusedError:
                return False

        until(is_listening)
        for method, path, body in (("GET", "/readyz", b""), ("POST", "/v1/predict", PICTURES[0])):
            reply = ask(port, method, path, body)
            assert_problem(reply, 503)
            assert int(reply.headers["retry-after"]) >= 1
        os.kill(worker, signal.SIGCONT)
        until(lambda: ask(port, path="/readyz").status == 200)
        assert ask(port, "POST", "/v1/predict", PICTURES[0]).status == 200
    finally:
        process.terminate()
        try:
            _, log = process.communicate(timeout=PATIENCE_SECONDS)
        finally:
            process.kill()
    assert process.returncode == 143
    assert f"foveal serves signs at http://127.0.0.1:{port}" in log


async def is_refused(port: int) -> bool:
    """Whether nobody listens there any more."""
    try:
        (await asyncio.open_connection("127.0.0.1", port))[1].close()
    except ConnectionRefusedError:
        return True
    return False


def test_sigterm_under_load_answers_what_was_taken_and_ends(tmp_path: Path) -> None:
    slow = write_export(tmp_path / "slow", num_slow_layers=50)
    wanted = expected(slow, PICTURES)
    with foveal.Server(slow, overrides=LIMITS) as server:
        port, workers = port_of(server), workers_of(server.pid)

        async def under_load() -> list[Reply | BaseException]:
            asked = [asyncio.create_task(post(port, PICTURES[number % 10])) for number in range(40)]
            end = time.monotonic() + PATIENCE_SECONDS
            while await asyncio.to_thread(figure, server, r"foveal_queue_images\b") < 20:
                assert time.monotonic() < end
                await asyncio.sleep(0.01)
            assert server.pid is not None
            os.kill(server.pid, signal.SIGTERM)
            while not await is_refused(port):
                assert time.monotonic() < end
                await asyncio.sleep(0.05)
            return await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), PATIENCE_SECONDS)

        replies = asyncio.run(under_load())
        exit_code = server.stop()
    right = 0
    for number, reply in enumerate(replies):
        # Connections that the server had not accepted when it stopped are closed unanswered.
        if isinstance(reply, Reply) and reply.status == 200:
            assert_right(reply.json()["predictions"][0], wanted[number % 10])
            right += 1
        else:
            assert isinstance(reply, Reply | OSError | asyncio.IncompleteReadError)
            assert not isinstance(reply, Reply) or reply.status == 503
    assert right >= 20
    assert exit_code == 143
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))

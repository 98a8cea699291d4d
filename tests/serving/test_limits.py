"""Connections to a real server: what is late, malformed, too much or not taken is ended; nobody else waits for it."""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest

import foveal
from plain_export import write_export

SECONDS = 1.0
MAX_CONNECTIONS = 24
PATIENCE_SECONDS = 20.0
LIMITS = (
    "serve.max_upload_mib=1",
    "serve.max_buffered_mib=2",
    f"serve.head_seconds={SECONDS}",
    f"serve.body_seconds={SECONDS}",
    f"serve.write_seconds={SECONDS}",
    f"serve.idle_seconds={2 * SECONDS}",
    f"serve.max_connections={MAX_CONNECTIONS}",
    "serve.num_threads=1",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[foveal.Server]:
    with foveal.Server(write_export(tmp_path_factory.mktemp("exports") / "a"), overrides=LIMITS) as running:
        yield running
    assert running.log == []  # no client can make the server write


class Client:
    """A connection that says exactly what it is told to."""

    def __init__(self, server: foveal.Server) -> None:
        self.port = int(server.url.rpartition(":")[2])
        self.socket = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_SECONDS)
        self.stream = self.socket.makefile("rb")

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()
        self.socket.close()

    def send(self, content: bytes) -> None:
        self.socket.sendall(content)

    def ask(self, method: str = "GET", path: str = "/healthz", *headers: str, body: bytes = b"") -> None:
        self.send("\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode() + body)

    def answer(self, *, has_body: bool = True) -> tuple[int, dict[str, str], bytes]:
        line = self.stream.readline()
        assert line.startswith(b"HTTP/1.1 "), line
        headers = {}
        while field := self.stream.readline().strip():
            name, _, value = field.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        length = int(headers.get("content-length", "0"))
        return int(line.split()[1]), headers, self.stream.read(length) if has_body else b""

    def problem(self, status: int) -> str:
        found, headers, body = self.answer()
        assert (found, headers["content-type"]) == (status, "application/problem+json"), body
        assert json.loads(body)["status"] == status
        return str(json.loads(body)["detail"])

    def seconds_until_closed(self, start: float | None = None) -> float:
        """Since a moment before the server's clock began to run, or since now."""
        start = time.monotonic() if start is None else start
        with suppress(ConnectionResetError):
            assert self.stream.read() == b""
        return time.monotonic() - start


def in_time(seconds: float, limit: float = SECONDS) -> bool:
    """Not before the limit, and not long after; machines of tests may be busy."""
    return 0.8 * limit <= seconds <= limit + 6.0


def test_a_connection_that_says_nothing_is_closed(server: foveal.Server) -> None:
    start = time.monotonic()
    with Client(server) as client:
        assert in_time(client.seconds_until_closed(start))


def test_a_head_that_comes_slowly_is_answered_with_408_however_it_drips(server: foveal.Server) -> None:
    start = time.monotonic()
    with Client(server) as client:
        try:
            for letter in b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 100:
                client.send(bytes([letter]))
                time.sleep(0.05)
        except OSError:
            pass
        assert "head" in client.problem(408)
        assert in_time(time.monotonic() - start)


def test_a_body_that_comes_slowly_is_answered_with_408(server: foveal.Server) -> None:
    with Client(server) as client:
        start = time.monotonic()
        client.ask("POST", "/v1/predict", "Content-Type: image/png", "Content-Length: 100", body=b"a")
        client.problem(408)
        assert in_time(time.monotonic() - start)
        assert client.seconds_until_closed() < 6.0


def test_a_kept_connection_is_closed_when_it_stays_idle_and_its_next_head_has_a_deadline(server: foveal.Server) -> None:
    with Client(server) as client:
        for _ in range(3):
            start = time.monotonic()
            client.ask()
            assert client.answer()[0] == 200
        assert in_time(client.seconds_until_closed(start), 2 * SECONDS)
    with Client(server) as client:
        client.ask()
        assert client.answer()[0] == 200
        start = time.monotonic()
        client.send(b"GET /")
        client.problem(408)
        assert in_time(time.monotonic() - start)


def test_requests_in_one_packet_are_answered_in_turn(server: foveal.Server) -> None:
    with Client(server) as client:
        client.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50 + b"GET /healthz HT")
        assert {client.answer()[0] for _ in range(50)} == {200}
        client.problem(408)


def test_a_client_that_does_not_take_its_answers_is_cut_off(server: foveal.Server) -> None:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    with connection:
        connection.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
        connection.settimeout(PATIENCE_SECONDS)
        try:
            # More answers than any buffer holds; sending stops when the server stops reading.
            connection.settimeout(0.5)
            for _ in range(4000):
                connection.sendall(b"GET /assets/page.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20)
        except OSError:
            pass
        mine = connection.getsockname()[1]
        pid = server.pid
        assert pid is not None
        until(lambda: mine not in peers(pid), 8.0)


def peers(pid: int) -> set[int]:
    """Ports of clients whose connections this process has open."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(descriptor)
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    rows = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]]
    return {int(row[2].partition(":")[2], 16) for row in rows if row[9] in inodes}


def until(is_so: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_connections_beyond_the_cap_are_told_to_come_again_and_later_ones_are_served(server: foveal.Server) -> None:
    with ExitStack() as stack:
        held = [stack.enter_context(Client(server)) for _ in range(MAX_CONNECTIONS)]
        held[0].ask()
        assert held[0].answer()[0] == 200
        over = [stack.enter_context(Client(server)) for _ in range(5)]
        for client in over:
            status, headers, _ = client.answer()
            assert status == 503
            assert int(headers["retry-after"]) >= 1
            assert client.seconds_until_closed() < 6.0
    until(lambda: status_of(server) == 200, 5.0)


def status_of(server: foveal.Server) -> int:
    with Client(server) as client:
        client.ask("GET", "/healthz", "Connection: close")
        return client.answer()[0]


@pytest.mark.parametrize(
    ("content", "statuses"),
    [
        (b"no http at all\r\n\r\n", {400}),
        (b"GET / HTTP/1.1\r\n\r\n", {400}),  # no Host
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", {400}),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n folded\r\n\r\n", {400, 421}),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400, 421}),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\r\n\r\n", {400}),  # TLS
        (b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", {400}),
        (b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", {400}),
        (b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n", {501}),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", {431}),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 17_000 + b"\r\n\r\n", {431}),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: a\r\n" * 101 + b"\r\n", {431}),
        (b"GET /" + b"a" * 17_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", {431}),
        (b"GET /?" + b"a" * 17_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", {431}),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization : Bearer secret\r\n\r\n", {400}),
        (b"GET / HTTP/1.0\r\n\r\n", {421}),
        (b"GET http://localhost/ HTTP/1.1\r\nHost: localhost\r\n\r\n", {404}),
        (b"CONNECT evil.example:443 HTTP/1.1\r\nHost: localhost\r\n\r\n", {404, 405}),
        (b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
         b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\nXYZ\r\n", {400}),
    ],
)  # fmt: skip
def test_what_is_no_http_of_ours_is_a_problem(server: foveal.Server, content: bytes, statuses: set[int]) -> None:
    with Client(server) as client:
        client.send(content)
        status, headers, body = client.answer()
        assert status in statuses
        assert headers["content-type"] == "application/problem+json"
        assert headers["x-content-type-options"] == "nosniff"
        assert "server" not in headers
        assert json.loads(body)["status"] == status
        assert b"bytearray" not in body  # nor what was sent
    assert status_of(server) == 200


def test_a_length_that_is_given_in_two_ways_is_refused_and_nothing_is_read_after_it(server: foveal.Server) -> None:
    """A proxy that goes by the other one would take the second request for the first one's body, or the reverse."""
    for length, body in ((5, b"0\r\n\r\n"), (4, b"0\r\n\r\n"), (3, b"3\r\nabc\r\n0\r\n\r\n")):
        with Client(server) as client:
            both = ("Content-Type: image/png", f"Content-Length: {length}", "Transfer-Encoding: chunked")
            client.ask("POST", "/v1/predict", *both, body=body)
            with suppress(OSError):
                client.ask("GET", "/healthz")
            status, headers, content = client.answer()
            assert (status, headers["connection"]) == (400, "close"), content
            assert client.stream.read() == b""


def test_ipv4_is_known_where_it_comes_in_at_an_ipv6_socket(tmp_path: Path) -> None:
    try:
        with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True):
            pass
    except (OSError, ValueError):
        pytest.skip("this machine has no IPv6")
    with foveal.Server(write_export(tmp_path / "a"), host="::", token="a-token-of-enough-letters") as running:
        port = int(running.url.rpartition(":")[2])
        # 127.0.0.2 is this machine's too, and no name that is always known.
        for address, status in (("[::1]", 200), ("127.0.0.1", 200), ("127.0.0.2", 200)):
            assert httpx.get(f"http://{address}:{port}/healthz").status_code == status
        elsewhere = httpx.get(f"http://127.0.0.2:{port}/healthz", headers={"Host": f"127.0.0.3:{port}"})
        assert elsewhere.status_code == 421


def test_a_refused_upload_is_told_why_though_it_goes_on_sending(server: foveal.Server) -> None:
    """The server's system would drop the answer if the server closed at once with bytes unread."""
    for headers in (["Content-Length: 3000000"], ["Transfer-Encoding: chunked"]):
        with Client(server) as client:
            client.ask("POST", "/v1/predict", "Content-Type: image/png", *headers)
            piece = b"10000\r\n" + b"a" * 0x10000 + b"\r\n"
            try:
                for _ in range(40):
                    client.send(piece)
            except OSError:
                pass
            assert "1,048,576 bytes" in client.problem(413)


def test_an_upload_is_not_asked_for_where_it_is_refused_by_its_head(server: foveal.Server) -> None:
    kinds = {"image/png": ("3000000", 413), "text/plain": ("3", 415), "multipart/form-data": ("3", 400)}
    for kind, (length, status) in kinds.items():
        with Client(server) as client:
            expecting = ("Expect: 100-continue", f"Content-Type: {kind}", f"Content-Length: {length}")
            client.ask("POST", "/v1/predict", *expecting)
            client.problem(status)  # and no "100 Continue" before it


def test_uploads_share_a_budget_of_memory_and_give_it_back(server: foveal.Server) -> None:
    one_less = 2**20 - 1
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(server)) for _ in range(4)]
        for client in clients:
            client.ask("POST", "/v1/predict", "Content-Type: image/png", f"Content-Length: {one_less + 1}")
            with suppress(OSError):
                client.send(b"a" * one_less)
        statuses = sorted(client.answer()[0] for client in clients)
        # Two MiB are two of them; the third and fourth have no room. What came in time ran into the deadline.
        assert statuses == [408, 408, 503, 503]
    with Client(server) as client:
        client.ask(
            "POST", "/v1/predict", "Content-Type: image/png", f"Content-Length: {one_less}", body=b"a" * one_less
        )
        client.problem(422)


def test_a_body_nobody_wants_does_not_hold_the_connection(server: foveal.Server) -> None:
    with Client(server) as client:
        client.ask("GET", "/healthz", "Content-Length: 1000000000", body=b"a" * 1000)
        status, headers, _ = client.answer()
        assert (status, headers["connection"]) == (200, "close")
        assert client.seconds_until_closed() < 8.0


def test_the_other_clients_do_not_wait(server: foveal.Server) -> None:
    with ExitStack() as stack:
        slow: Sequence[Client] = [stack.enter_context(Client(server)) for _ in range(10)]
        for client in slow[:5]:
            client.send(b"GET /")
        for client in slow[5:]:
            client.ask("POST", "/v1/predict", "Content-Type: image/png", "Content-Length: 100", body=b"a")
        start = time.monotonic()
        for _ in range(20):
            assert status_of(server) == 200
        assert time.monotonic() - start < 10.0

"""Who is answered: tokens, names of the server, and other web pages."""

from pathlib import Path

import pytest

from foveal.errors import ConfigError
from foveal.serving.access import Access, is_loopback, read_token
from foveal.serving.config import ServeConfig
from foveal.serving.problems import RefusedError

TOKEN = "0123456789abcdef-XYZ"
ACCESS = Access.of(("0.0.0.0", "box.lan"), TOKEN, ("Lab.example",), ("https://app.example",))


def headers(**named: str) -> list[tuple[bytes, bytes]]:
    return [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in named.items()]


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8000",
        "127.0.0.1",
        "127.0.0.1:80",
        "[::1]:8000",
        "box.lan",
        "lab.example.",
        "192.168.1.5:1",
    ],
)
def test_its_own_names_are_known(host: str) -> None:
    ACCESS.check_host(headers(host=host), "192.168.1.5")


def test_its_own_address_is_known_however_the_system_writes_it() -> None:
    for host, local in (
        ("192.168.1.5:1", "::ffff:192.168.1.5"),
        ("[fe80::1]:1", "fe80::1%eth0"),
        ("[2001:db8::5]", "2001:db8::5"),
    ):
        ACCESS.check_host(headers(host=host), local)
    with pytest.raises(RefusedError):
        ACCESS.check_host(headers(host="192.168.1.6"), "::ffff:192.168.1.5")


def test_a_head_is_small_and_gives_one_length() -> None:
    ACCESS.check_head(headers(a="b" * 16_000))
    ACCESS.check_head(headers(content_length="3", x="chunked"), b"/" * 16_000)
    for head, target, status in (
        (headers(a="b" * 16_384), b"", 431),
        (headers(a="b" * 8_000), b"/" * 8_500, 431),
        (headers(a="b") * 101, b"", 431),
        (headers(content_length="3", transfer_encoding="chunked"), b"/", 400),
    ):
        with pytest.raises(RefusedError) as refusal:
            ACCESS.check_head(head, target)
        assert refusal.value.problem.status == status


@pytest.mark.parametrize(
    "host",
    ["", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "192.168.1.6", "localhost@evil.example",
     "localhost:8000:1", "[::1", "local host", "localhost/..", "::1", "127.1", "0x7f000001"],
)  # fmt: skip
def test_other_names_are_not(host: str) -> None:
    with pytest.raises(RefusedError) as refusal:
        ACCESS.check_host(headers(host=host), "192.168.1.5")
    assert refusal.value.problem.status == 421
    for wrong in ([], headers(host="localhost") * 2):
        with pytest.raises(RefusedError):
            ACCESS.check_host(wrong, None)


def test_its_own_page_and_allowed_ones_may_ask_and_no_other() -> None:
    assert ACCESS.check_origin(headers(host="localhost:8000")) is None
    for host, origin in [
        ("localhost:8000", "http://localhost:8000"),
        ("lab.example", "https://lab.example"),  # behind a proxy that speaks TLS
        ("lab.example:443", "https://LAB.example"),
        ("[::1]:8000", "http://[::1]:8000"),
    ]:
        assert ACCESS.check_origin(headers(host=host, origin=origin)) is None
    assert ACCESS.check_origin(headers(host="localhost:8000", origin="https://app.example")) == "https://app.example"
    for origin in (
        "null", "", "http://localhost:3000", "http://localhost", "http://localhost:8000.evil.example", "localhost:8000",
        "file://localhost:8000", "https://app.example.evil", "http://app.example", "https://app.example:444", "*",
    ):  # fmt: skip
        with pytest.raises(RefusedError) as refusal:
            ACCESS.check_origin(headers(host="localhost:8000", origin=origin))
        assert refusal.value.problem.status == 403
    twice = [*headers(host="localhost:8000", origin="http://localhost:8000"), (b"origin", b"http://localhost:8000")]
    with pytest.raises(RefusedError):
        ACCESS.check_origin(twice)


def test_the_token_opens_all_and_without_it_only_health_the_page_and_the_description_are_open() -> None:
    for path in ("/healthz", "/readyz", "/", "/assets/page.js", "/docs", "/openapi.json"):
        ACCESS.check_token([], path)
    for kind in ("Bearer", "bearer"):
        ACCESS.check_token(headers(authorization=f"{kind} {TOKEN}"), "/v1/models")
    wrong = [
        "",
        TOKEN,
        f"Basic {TOKEN}",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN.lower()}",
        "Bearer é",
    ]
    for path in ("/v1/models", "/v1/predict", "/metrics", "/readyz/", "/docs/", "/openapi.json/", "/healthz/", "//"):
        for value in wrong:
            with pytest.raises(RefusedError) as refusal:
                ACCESS.check_token(headers(authorization=value), path)
            assert refusal.value.problem.status == 401
            assert TOKEN not in refusal.value.problem.detail
        with pytest.raises(RefusedError):
            ACCESS.check_token(headers(authorization=f"Bearer {TOKEN}") * 2, path)
    Access.of(("127.0.0.1",), None, (), ()).check_token([], "/v1/models")


def test_a_token_is_read_from_a_file_or_the_environment_and_never_shown(tmp_path: Path) -> None:
    file = tmp_path / "token.txt"
    file.write_text(f"{TOKEN}\n")
    assert read_token(file, "another-token-of-the-environment") == TOKEN
    assert read_token(None, TOKEN) == TOKEN
    assert read_token(None, None) is None
    for text in ("", "short", "with spaces in between it", "naïve-token-of-letters", "a" * 15):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError) as error:
            read_token(file, None)
        assert "secrets.token_urlsafe" in str(error.value)
        assert not text or text not in str(error.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_token(tmp_path / "gone", None)
    with pytest.raises(ConfigError, match="FOVEAL_TOKEN"):
        read_token(None, "")


def test_only_this_machine_reaches_a_loopback_address() -> None:
    assert all(is_loopback(each) for each in ("127.0.0.1", "127.8.8.8", "::1"))
    assert not any(is_loopback(each) for each in ("0.0.0.0", "::", "192.168.1.5", "fe80::1%eth0", "8.8.8.8"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"allowed_hosts": ("*",)},
        {"allowed_hosts": ("http://lab.example",)},
        {"allowed_hosts": ("lab.example:80",)},
        {"allowed_origins": ("*",)},
        {"allowed_origins": ("lab.example",)},
        {"allowed_origins": ("https://lab.example/",)},
        {"allowed_origins": ("null",)},
        {"queue_size": 8, "max_images": 9},
        {"max_upload_mib": 64, "max_buffered_mib": 32},
    ],
)
def test_settings_that_open_more_than_they_say_or_hang_together_badly_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"expected|must be at least"):
        ServeConfig.model_validate(wrong)

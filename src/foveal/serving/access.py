"""Who may ask: the token, the name by which the server is addressed, and the web page that a request comes from."""

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from foveal.errors import ConfigError
from foveal.serving.problems import RefusedError

MIN_TOKEN_LETTERS = 16
TOKEN_VARIABLE = "FOVEAL_TOKEN"
MAX_HEAD_BYTES = 16 * 1024
MAX_HEADERS = 100

OPEN_PATHS = frozenset(("/healthz", "/readyz", "/", "/docs", "/openapi.json"))
"""What is answered without a token: that the server lives and that it is ready, which those who start and watch servers
ask; the page, which asks for the token by itself; and the description of the interface. None holds anything of the
models."""

ALLOWED_METHODS = "GET, HEAD, POST, OPTIONS"
_ALWAYS = ("localhost", "127.0.0.1", "[::1]")
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+")
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")

Headers = Sequence[tuple[bytes, bytes]]


def read_token(token_file: Path | None, environment: str | None) -> str | None:
    """The token of this server; None where it has none.

    Args:
        token_file: what `--token-file` names.
        environment: the value of `FOVEAL_TOKEN`.

    Raises:
        ConfigError: the file cannot be read, or what was given is no token or too short to be one.
    """
    make = "make one: python -c 'import secrets; print(secrets.token_urlsafe(32))' > token.txt"
    if token_file is not None:
        origin = str(token_file)
        try:
            text = token_file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no plain text"
            raise ConfigError(f"The token file {token_file} cannot be read: {why}.", fix=make) from error
    elif environment is not None:
        origin, text = f"the environment's {TOKEN_VARIABLE}", environment.strip()
    else:
        return None
    if len(text) < MIN_TOKEN_LETTERS or not _TOKEN.fullmatch(text):
        raise ConfigError(
            f"A token of at least {MIN_TOKEN_LETTERS} letters, digits or ._~+/=- was expected in {origin}, "
            f"and {len(text)} characters came.",
            fix=make,
        )
    return text


def is_loopback(address: str) -> bool:
    """Whether nobody but this machine can reach an IP address."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def host_in_url(address: str) -> str:
    """An address or name as it stands in a URL: IPv6 in brackets."""
    return f"[{address}]" if ":" in address else address


@dataclass(frozen=True)
class Access:
    """The rules for whom the server answers.

    Attributes:
        hosts: names and addresses in small letters, as they stand in a URL, without port.
        origins: other web pages that may ask, such as https://lab.example.
        token_digest: SHA-256 of the token; None where none is needed.
    """

    hosts: frozenset[str]
    origins: frozenset[str]
    token_digest: bytes | None

    @classmethod
    def of(
        cls, bound: Sequence[str], token: str | None, allowed_hosts: Sequence[str], allowed_origins: Sequence[str]
    ) -> "Access":
        """The rules for a server.

        Args:
            bound: names and addresses that it was told to listen at.
            token: what clients must know, if anything.
            allowed_hosts: other names under which it may be addressed.
            allowed_origins: other web pages that may ask it.
        """
        hosts = {*_ALWAYS, *(host_in_url(each).lower() for each in bound), *(each.lower() for each in allowed_hosts)}
        digest = None if token is None else hashlib.sha256(token.encode("ascii")).digest()
        return cls(frozenset(hosts), frozenset(each.lower() for each in allowed_origins), digest)

    def check_head(self, headers: Headers, target: bytes = b"") -> None:
        """Refuse heads that are larger than any client of ours sends, or say in two ways how long the body is.

        Args:
            headers: of the request, names in small letters.
            target: what is asked for: path and query.

        Raises:
            RefusedError: 400 or 431.
        """
        size = len(target) + sum(len(name) + len(value) + 4 for name, value in headers)
        if len(headers) > MAX_HEADERS or size > MAX_HEAD_BYTES:
            raise RefusedError(
                "large-head",
                f"At most {MAX_HEADERS} headers are taken, which together with the address have {MAX_HEAD_BYTES:,} "
                "bytes at most.",
            )
        if {b"content-length", b"transfer-encoding"} <= {name for name, _ in headers}:
            # A proxy in front may go by the other of the two, and take for the next request what is this one's body
            # (request smuggling, RFC 9112, 6.1).
            raise RefusedError("malformed", "A request has either a Content-Length or a Transfer-Encoding, not both.")

    def check_host(self, headers: Headers, local_address: str | None) -> None:
        """Refuse requests that were meant for another name: a foreign page may point its own name here (DNS rebinding).

        Args:
            headers: of the request, names in small letters.
            local_address: where the connection came in. A page cannot make a browser send an address that it is not at.

        Raises:
            RefusedError: 421.
        """
        host = _host(_one(headers, b"host"))
        own = host_in_url(_as_addressed(local_address)) if local_address else None
        if host is None or (host not in self.hosts and host != own):
            raise RefusedError(
                "foreign-host",
                "The Host header must name this machine, or one of serve.allowed_hosts: "
                "start the server with --set serve.allowed_hosts=[NAME] to add one.",
            )

    def check_origin(self, headers: Headers) -> str | None:
        """Refuse requests of other web pages, which a browser marks by the Origin header.

        Returns:
            The other page's origin where it is one of the allowed, for the answer's CORS headers; else None.

        Raises:
            RefusedError: 403.
        """
        if not any(name == b"origin" for name, _ in headers):
            return None
        origin = (_one(headers, b"origin") or "").lower()
        if origin in self.origins:
            return origin
        scheme, sign, authority = origin.partition("://")
        host = (_one(headers, b"host") or "").lower()
        if sign and scheme in {"http", "https"} and _same_place(scheme, authority, host):
            return None
        raise RefusedError(
            "foreign-origin",
            "The Origin header names another web page than this server's own, and none of serve.allowed_origins.",
        )

    def check_token(self, headers: Headers, path: str) -> None:
        """Refuse whoever does not know the token; nothing where none is needed.

        Raises:
            RefusedError: 401.
        """
        if self.token_digest is None or path in OPEN_PATHS or path.startswith("/assets/"):
            return
        kind, _, token = (_one(headers, b"authorization") or "").partition(" ")
        digest = hashlib.sha256(token.strip().encode("latin-1")).digest()
        # Digests have one length, so that not even the time that this takes says anything of the token.
        if not hmac.compare_digest(digest, self.token_digest) or kind.lower() != "bearer":
            raise RefusedError("no-token", "Send the header 'Authorization: Bearer TOKEN' with this server's token.")


def preflight_headers(origin: str | None) -> dict[str, str]:
    """What a browser wants to know before it lets another page's request go."""
    if origin is None:
        return {}
    return {
        "access-control-allow-methods": "GET, POST",
        "access-control-allow-headers": "authorization, content-type",
        "access-control-max-age": "600",
    }


def _one(headers: Headers, name: bytes) -> str | None:
    """The value of a header that may come once; None where it does not come, or more than once."""
    found = [value for key, value in headers if key == name]
    return found[0].decode("latin-1").strip() if len(found) == 1 else None


def _as_addressed(local_address: str) -> str:
    """An address of this machine as clients write it: IPv4 also where it came in at an IPv6 socket, and no zone."""
    address = ipaddress.ip_address(local_address.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def _host(authority: str | None) -> str | None:
    found = _AUTHORITY.fullmatch(authority or "")
    return found[1].lower().rstrip(".") if found else None


def _same_place(scheme: str, origin: str, host: str) -> bool:
    """Whether two authorities are the same host and port, the scheme's own port being the same as none."""
    ports = {"http": "80", "https": "443"}
    ours, theirs = _AUTHORITY.fullmatch(host), _AUTHORITY.fullmatch(origin)
    if ours is None or theirs is None:
        return False
    return (ours[1], ours[2] or ports[scheme]) == (theirs[1], theirs[2] or ports[scheme])

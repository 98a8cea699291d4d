"""The `serve` section: what a server takes, how long it waits, and whom it answers."""

import re
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from foveal.config import Section, load

_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\]", re.IGNORECASE)


class ServeConfig(Section):
    """Limits of the server; each bounds what one client, or all together, can take."""

    max_upload_mib: float = Field(default=32.0, gt=0.0, le=1024.0)
    """Largest body of a request, in MiB; more is refused with 413 before it is read."""
    max_images: int = Field(default=32, ge=1, le=1024)
    """Most images in one request."""
    max_buffered_mib: float = Field(default=512.0, gt=0.0)
    """Bodies of all requests that are held at one time, in MiB; beyond it, 503."""
    max_connections: int = Field(default=1024, ge=1, le=65536)
    """Most connections that are open at one time; the next are answered with 503 and closed."""
    queue_size: int = Field(default=128, ge=1, le=65536)
    """Most images that wait or are worked on, over all models; requests that do not fit get 503 at once."""
    max_batch: int = Field(default=8, ge=1, le=1024)
    """Most images that are computed together; each view of test-time augmentation counts as one."""
    max_wait_ms: float = Field(default=5.0, ge=0.0, le=1000.0)
    """Longest time, in ms, that decoded images wait for others that are still being decoded."""
    request_seconds: float = Field(default=30.0, gt=0.0, le=3600.0)
    """Longest time, in s, from the whole request to its answer; then 503."""
    head_seconds: float = Field(default=10.0, gt=0.0, le=3600.0)
    """Longest time, in s, in which a client may send the head of a request; then the connection is closed."""
    body_seconds: float = Field(default=60.0, gt=0.0, le=3600.0)
    """Longest time, in s, in which a client may send the body; then 408."""
    write_seconds: float = Field(default=30.0, gt=0.0, le=3600.0)
    """Longest time, in s, in which a client may take the answer; then the connection is closed."""
    idle_seconds: float = Field(default=15.0, gt=0.0, le=3600.0)
    """How long, in s, a connection may stay open between two requests."""
    drain_seconds: float = Field(default=20.0, ge=0.0, le=3600.0)
    """How long, in s, requests under way may still take after SIGTERM or Ctrl-C; the rest then gets 503."""
    num_threads: Annotated[int, Field(ge=1, le=256)] | Literal["auto"] = "auto"
    """Threads that compute; auto takes one a processor."""
    allowed_hosts: tuple[str, ...] = ()
    """Names under which the server may be addressed (the Host header), besides localhost and its own address."""
    allowed_origins: tuple[str, ...] = ()
    """Other web pages that may ask it (CORS), as in https://lab.example; the server's own page always may."""
    access_log: bool = False
    """Whether each request is a line on stderr: method, route, status and time; never what it held."""

    @field_validator("allowed_hosts")
    @classmethod
    def _host_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not _HOST.fullmatch(name):
                raise ValueError(f"expected names or addresses without scheme and port, as lab.example; came {name!r}")
        return tuple(name.lower() for name in value)

    @field_validator("allowed_origins")
    @classmethod
    def _whole_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            parts = urlsplit(origin)
            if (
                parts.scheme not in {"http", "https"}
                or not parts.hostname
                or origin != f"{parts.scheme}://{parts.netloc}"
            ):
                raise ValueError(
                    f"expected scheme://host or scheme://host:port, as https://lab.example; came {origin!r}"
                )
        return tuple(origin.lower() for origin in value)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.queue_size < self.max_images:
            raise ValueError(
                f"queue_size ({self.queue_size}) must be at least max_images ({self.max_images}): "
                "otherwise a full request never fits"
            )
        if self.max_buffered_mib < self.max_upload_mib:
            raise ValueError(
                f"max_buffered_mib ({self.max_buffered_mib:g}) must be at least max_upload_mib "
                f"({self.max_upload_mib:g})"
            )
        return self

    @property
    def max_upload_bytes(self) -> int:
        """The largest body of a request."""
        return int(self.max_upload_mib * 2**20)

    @property
    def max_buffered_bytes(self) -> int:
        """The largest sum of all bodies that are held at one time."""
        return int(self.max_buffered_mib * 2**20)


class ServeSettings(Section):
    """The configuration of `foveal serve`: its one section."""

    serve: ServeConfig = ServeConfig()
    """Limits of the server."""


def read_serve_config(config: ServeConfig | str | PathLike[str] | None, overrides: Sequence[str] = ()) -> ServeConfig:
    """The section as the verb is given it: an object, a YAML file or nothing, with overrides on top.

    Raises:
        ConfigError: keys or values are wrong; all at once.
    """
    if isinstance(config, ServeConfig):
        base = {"serve": config.model_dump(mode="json", exclude_unset=True)}
        return load(ServeSettings, None, overrides, base=base, is_shared=True).serve
    return load(ServeSettings, None if config is None else Path(config), overrides, is_shared=True).serve

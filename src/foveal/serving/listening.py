"""The HTTP server around the app: uvicorn over h11 with our connections, and without its signals, logs and banners."""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import uvicorn

from foveal.serving.access import Access
from foveal.serving.app import Front, make_app
from foveal.serving.gate import SECURITY_HEADERS, Gate
from foveal.serving.limits import BoundedProtocol, ConnectionLimits
from foveal.serving.monitoring import OTHER_ROUTE

_SPARE_SECONDS = 3.0
"""Beyond the drain, for refusals of the rest to be read."""


class FrontServer(uvicorn.Server):
    """uvicorn's server, which leaves signals to whoever started it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def make_server(front: Front, access: Access, say: Callable[[str], None]) -> FrontServer:
    """The server, which has not begun to listen.

    Args:
        front: what the routes work with.
        access: for whom it answers.
        say: takes one line for the server's log.
    """
    config = front.config
    # Its lines are for people who debug uvicorn; what matters to ours is said by the gate, once.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL + 1)
    limits = ConnectionLimits(
        head_seconds=config.head_seconds,
        request_seconds=config.body_seconds + config.request_seconds + config.write_seconds,
        write_seconds=config.write_seconds,
        max_connections=config.max_connections,
        headers=SECURITY_HEADERS,
    )
    protocol = partial(
        BoundedProtocol,
        limits=limits,
        refused=lambda problem: front.monitor.request(OTHER_ROUTE, problem.status),
    )
    gate = Gate(make_app(front), access, front.monitor, say, is_logging_requests=config.access_log)
    settings = uvicorn.Config(
        cast(Any, gate),
        http=cast(Any, protocol),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=2048,
        timeout_keep_alive=math.ceil(config.idle_seconds),
        timeout_graceful_shutdown=math.ceil(config.drain_seconds + _SPARE_SECONDS),
    )
    return FrontServer(settings)

"""What is left of a body once its request is answered: nothing, whatever the answer was."""

import asyncio
import gc
import tracemalloc
from collections.abc import Sequence
from typing import Any

import httpx
import pytest

from foveal.errors import ConfigError, FovealError
from foveal.serving.app import Front, make_app
from foveal.serving.config import ServeConfig
from foveal.serving.messages import Answer, AnswerFault, AnswerSeconds, ModelFacts
from foveal.serving.monitoring import Monitor
from foveal.serving.uploads import BufferBudget
from foveal.serving.worker_client import Busy, NotReady, TimedOut, WorkerStatistics

MIB = 2**20
CONTENT = bytes(4 * MIB)
NUM_REQUESTS = 6
MODEL = ModelFacts(
    name="signs", architecture="", class_names=("a", "b"), precision="fp32", size_px=8, tta=("none",), heatmap=False,
    heatmap_reason="", licence="", metrics={}, is_default=True, ordered=False, fit="crop", store_px=9,
    background=(0, 0, 0),
)  # fmt: skip


class Worker:
    """One that cannot read any image, or fails as it is told."""

    is_ready = True
    models = (MODEL,)

    def __init__(self, error: FovealError | None) -> None:
        self.statistics = WorkerStatistics()
        self._error = error

    async def predict(self, model: str, images: Sequence[bytes], **how: Any) -> list[Answer]:
        await asyncio.sleep(0)
        if self._error is not None:
            raise type(self._error)(self._error.message)
        fault = Answer.failed(AnswerFault("damaged", "it is"), AnswerSeconds(0.0, 0.0, 0.0, 0))
        return [fault for _ in images]


def kept_bytes(worker: Worker, status: int, **sent: Any) -> int:
    """How much more memory is held after some requests, while Python does not look for circles."""

    async def ask() -> int:
        config = ServeConfig(max_upload_mib=16.0)
        front = Front(worker, ("signs",), config, Monitor(("signs",)), False, BufferBudget(64 * MIB), asyncio.Event())
        transport = httpx.ASGITransport(app=make_app(front))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            for number in range(NUM_REQUESTS + 1):
                reply = await client.post("/v1/predict", **sent)
                assert reply.status_code == status, reply.text
                del reply
                if number == 0:
                    gc.collect()
                    gc.disable()
                    before = tracemalloc.get_traced_memory()[0]
            assert front.budget.used_bytes == 0
            return tracemalloc.get_traced_memory()[0] - before

    tracemalloc.start()
    try:
        return asyncio.run(ask())
    finally:
        gc.enable()
        tracemalloc.stop()


FORM = {"files": [("image", ("1.png", CONTENT)), ("image", ("2.png", CONTENT))]}
CUT_FORM = {
    "content": b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\n' + CONTENT,
    "headers": {"content-type": "multipart/form-data; boundary=b"},
}
RAW = {"content": CONTENT, "headers": {"content-type": "image/png"}}
TOO_LARGE = {"files": [("image", ("1.png", CONTENT))] * 5}


@pytest.mark.parametrize(
    ("error", "sent", "status"),
    [
        (None, FORM, 200),
        (None, RAW, 422),
        (None, CUT_FORM, 400),
        (None, TOO_LARGE, 413),
        (Busy("full"), FORM, 503),
        (Busy("full"), RAW, 503),
        (NotReady("it died"), FORM, 503),
        (TimedOut("late"), RAW, 503),
        (ConfigError("wrong"), FORM, 422),
    ],
)
def test_no_body_outlives_its_answer(error: FovealError | None, sent: dict[str, Any], status: int) -> None:
    """Otherwise a server under load holds many times what `serve.max_buffered_mib` allows."""
    assert kept_bytes(Worker(error), status, **sent) < 2 * MIB

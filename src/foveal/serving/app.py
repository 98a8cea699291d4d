"""The routes of the server. What they need is handed in, so that nothing here belongs to the process."""

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Annotated, Any, Protocol

from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import Field
from starlette.exceptions import HTTPException

from foveal.config import Section
from foveal.errors import ConfigError
from foveal.serving.answers import Health, Limits, Models, Predictions, models_body, predictions_body
from foveal.serving.api_page import api_page
from foveal.serving.config import ServeConfig
from foveal.serving.describing import PREDICT_BODY, describe, problems_of
from foveal.serving.messages import Answer, ModelFacts
from foveal.serving.monitoring import CONTENT_TYPE, Monitor
from foveal.serving.problems import ClientGoneError, Problem, RefusedError, problem_of_status
from foveal.serving.uploads import BufferBudget, Upload, UploadLimits, read_uploads
from foveal.serving.worker_client import Busy, NotReady, TimedOut, WorkerStatistics

_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}


class Worker(Protocol):
    """What is asked of the process that computes, see `foveal.serving.worker_client.WorkerClient`."""

    is_ready: bool
    models: tuple[ModelFacts, ...]
    statistics: WorkerStatistics

    async def predict(
        self, model: str, images: Sequence[bytes], *, tta: str, heatmap: bool, deadline_seconds: float
    ) -> list[Answer]:
        """What a model says of images."""
        ...


class PredictQuery(Section):
    """What may stand behind the question mark."""

    tta: str = Field(default="none", max_length=16)
    """Test-time augmentation: none, flip, dihedral, crops5, or a number of views."""
    heatmap: bool = False
    """Whether to say where in the image the class was seen."""


@dataclass(eq=False)
class Front:
    """What the routes work with.

    Attributes:
        worker: computes.
        names: of the models, the default first.
        config: limits.
        monitor: counts.
        needs_token: whether clients must send one, for the description.
        budget: memory for bodies.
        stopping: set when the server no longer takes requests.
    """

    worker: Worker
    names: tuple[str, ...]
    config: ServeConfig
    monitor: Monitor
    needs_token: bool
    budget: BufferBudget
    stopping: asyncio.Event

    def model(self, name: str) -> ModelFacts:
        """One of the models, once the worker has opened it.

        Raises:
            RefusedError: 404 or 503.
        """
        if name not in self.names:
            raise RefusedError("not-found", "There is no model of that name; GET /v1/models lists them.")
        self.refuse_unready()
        return next(model for model in self.worker.models if model.name == name)

    def refuse_unready(self) -> None:
        """Refuse while nothing can be computed.

        Raises:
            RefusedError: 503.
        """
        if self.stopping.is_set():
            raise RefusedError("stopping", "The server is stopping; ask again.")
        if not self.worker.is_ready:
            raise RefusedError("not-ready", "The models are being loaded; ask again.")

    async def predict(self, name: str, query: PredictQuery, request: Request) -> Response:
        """Read the images, have them computed, and answer.

        Raises:
            RefusedError: for all that is wrong with the request, or with the server at this moment.
        """
        start = time.perf_counter()
        model = self.model(name)
        _check_once(request)
        _check_tta(query.tta)
        headers, limits = request.scope["headers"], self.upload_limits
        with self.budget.account() as account:
            uploads = await read_uploads(headers, request.receive, limits, account)
            answers = await self._computed(model, uploads, query, request.receive)
        seconds = time.perf_counter() - start
        self.monitor.predicted(model.name, answers, seconds)
        if len(answers) == 1 and answers[0].error is not None:
            raise RefusedError("unreadable-image", answers[0].error.detail)
        names = [upload.name for upload in uploads]
        body = predictions_body(model, names, answers, wants_heatmap=query.heatmap, seconds=seconds)
        return _json(body)

    async def _computed(
        self, model: ModelFacts, uploads: Sequence[Upload], query: PredictQuery, receive: Callable[[], Awaitable[Any]]
    ) -> list[Answer]:
        """The answers of the worker; given up where the client leaves, or the server has waited long enough.

        Raises:
            RefusedError: 422 or 503.
            ClientGoneError: the client has left.
        """
        images = [upload.content for upload in uploads]
        asked = self.worker.predict(
            model.name, images, tta=query.tta, heatmap=query.heatmap, deadline_seconds=self.config.request_seconds
        )
        work = asyncio.ensure_future(asked)
        gone = asyncio.ensure_future(_until_gone(receive))
        waiting = (work, gone)
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise ClientGoneError
            return work.result()
        except Busy as error:
            raise RefusedError("busy", str(error.message)) from error
        except NotReady as error:
            raise RefusedError("not-ready", str(error.message)) from error
        except TimedOut as error:
            raise RefusedError("too-slow", str(error.message)) from error
        except ConfigError as error:
            raise RefusedError("bad-parameter", str(error.message)) from error
        finally:
            for task in waiting:
                task.cancel()
            # Cancelled work takes back what is queued, and is not left to itself.
            await asyncio.gather(*waiting, return_exceptions=True)
            # A task that failed holds its error, which holds this frame: the images would outlive their request.
            del asked, work, gone, waiting

    @property
    def upload_limits(self) -> UploadLimits:
        """What one request may bring."""
        return UploadLimits(self.config.max_upload_bytes, self.config.max_images, self.config.body_seconds)

    @property
    def limits(self) -> Limits:
        """The same, as clients are told."""
        return Limits(max_upload_bytes=self.config.max_upload_bytes, max_images=self.config.max_images)


def make_app(front: Front) -> FastAPI:
    """The app, without the gate around it."""
    app = FastAPI(
        title="foveal",
        summary="Image classification: the number you read is the number you will get.",
        version=_version(),
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        separate_input_output_schemas=False,
    )
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    _add_predictions(app, front)
    _add_health(app, front)
    _add_pages(app, front)
    return app


def _add_predictions(app: FastAPI, front: Front) -> None:
    predict_responses: dict[int | str, dict[str, Any]] = {
        200: {"model": Predictions, "description": "A prediction for each image; one that cannot be read fails alone."},
        **problems_of(400, 401, 403, 404, 408, 413, 415, 421, 422, 503),
    }

    listed: dict[int | str, dict[str, Any]] = {200: {"model": Models}, **problems_of(401, 403, 421, 503)}

    @app.get("/v1/models", summary="The models, and the limits of a request", tags=["models"],
             responses=listed, response_class=Response)  # fmt: skip
    async def models() -> Response:
        if not front.worker.models:
            front.refuse_unready()
        return _json(models_body(front.worker.models, front.limits))

    @app.post("/v1/predict", summary="Predict with the default model", tags=["predictions"],
              responses=predict_responses, response_class=Response, openapi_extra=PREDICT_BODY)  # fmt: skip
    async def predict(request: Request, query: Annotated[PredictQuery, Query()]) -> Response:
        return await front.predict(front.names[0], query, request)

    @app.post("/v1/models/{name}/predict", summary="Predict with one of the models", tags=["predictions"],
              responses=predict_responses, response_class=Response, openapi_extra=PREDICT_BODY)  # fmt: skip
    async def predict_with(
        request: Request,
        name: Annotated[str, Path(description="Name of the model, as /v1/models lists it.")],
        query: Annotated[PredictQuery, Query()],
    ) -> Response:
        return await front.predict(name, query, request)


def _add_health(app: FastAPI, front: Front) -> None:
    alive: dict[int | str, dict[str, Any]] = {200: {"model": Health}, **problems_of(403, 421)}
    ready: dict[int | str, dict[str, Any]] = {200: {"model": Health}, **problems_of(401, 403, 421, 503)}
    figures: dict[int | str, dict[str, Any]] = {
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus' text format."},
        **problems_of(401, 403, 421),
    }

    @app.get("/healthz", summary="Whether the server lives", tags=["health"],
             responses=alive, response_class=Response)  # fmt: skip
    async def healthz() -> Response:
        return _json(b'{"status": "ok"}')

    @app.get("/readyz", summary="Whether the models are ready", tags=["health"],
             responses=ready, response_class=Response)  # fmt: skip
    async def readyz() -> Response:
        front.refuse_unready()
        return _json(b'{"status": "ok"}')

    @app.get("/metrics", summary="Figures for Prometheus", tags=["health"],
             responses=figures, response_class=Response)  # fmt: skip
    async def metrics() -> Response:
        return Response(front.monitor.text(), headers={"content-type": CONTENT_TYPE, "cache-control": "no-store"})


def _add_pages(app: FastAPI, front: Front) -> None:
    page = _page_files()
    description = describe(app, needs_token=front.needs_token)
    shown = api_page(description)

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return _json(description.json)

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        return _file(shown.html, "text/html; charset=utf-8", request, policy=shown.content_policy)

    @app.get("/", include_in_schema=False)
    async def index(request: Request) -> Response:
        return _file(page["index.html"], "text/html; charset=utf-8", request)

    @app.get("/assets/{name}", include_in_schema=False)
    async def asset(name: str, request: Request) -> Response:
        # A dictionary, not a folder: there is no path that could lead out of it.
        kind = _TYPES.get(name[name.rfind(".") :])
        if kind is None or name not in page:
            raise RefusedError("not-found", "There is no such file.")
        return _file(page[name], kind, request)


def _page_files() -> Mapping[str, bytes]:
    folder = files("foveal.serving") / "page"
    return {each.name: each.read_bytes() for each in folder.iterdir() if each.is_file()}


def _file(content: bytes, kind: str, request: Request, *, policy: str | None = None) -> Response:
    """A file that browsers keep and ask about each time: it changes with foveal's release and no sooner."""
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {"etag": tag, "cache-control": "no-cache"}
    if policy is not None:
        headers["content-security-policy"] = policy
    known = [each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")]
    if tag in known or known == ["*"]:
        return Response(status_code=304, headers=headers)
    return Response(content, headers={**headers, "content-type": kind})


def _json(body: bytes) -> Response:
    return Response(body, headers={"content-type": "application/json", "cache-control": "no-store"})


def _check_once(request: Request) -> None:
    """Refuse a parameter that comes twice, of which one would silently win.

    Raises:
        RefusedError: 422.
    """
    counts = Counter(name for name, _ in request.query_params.multi_items())
    if twice := [name for name, count in counts.items() if count > 1]:
        raise RefusedError("bad-parameter", f"{', '.join(twice)}: may come once, and comes several times.")


def _check_tta(tta: str) -> None:
    """Refuse ways that there are not, before a body is read.

    Raises:
        RefusedError: 422.
    """
    if tta == "none":
        return
    from foveal.pixels.views import views_of  # brings Pillow, which nothing else here needs

    try:
        views_of(tta)
    except ConfigError as error:
        raise RefusedError("bad-parameter", error.message) from error


async def _until_gone(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _version() -> str:
    from foveal.version import __version__

    return __version__


async def _refused(request: Request, error: Exception) -> Response:
    del request
    problem = error.problem if isinstance(error, RefusedError) else Problem("failed", "The server failed.")
    return Response(problem.body(), problem.status, problem.all_headers())


async def _of_starlette(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = dict(getattr(error, "headers", None) or {})
    if status == 405:
        allowed = [method for each in [headers.get("Allow", "")] for method in each.split(", ") if method]
        headers = {"allow": ", ".join([*allowed, *(["HEAD"] if "GET" in allowed else []), "OPTIONS"])}
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=headers)
        detail = f"{request.method} cannot be done here; {headers['allow']} can."
    else:
        detail = "There is nothing under this path; /docs lists what there is." if status == 404 else str(error)
    return await _refused(request, RefusedError(problem_of_status(status), detail, headers))


async def _of_validation(request: Request, error: Exception) -> Response:
    faults = error.errors() if isinstance(error, RequestValidationError) else []
    words = "; ".join(f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}" for each in faults[:5])
    return await _refused(request, RefusedError("bad-parameter", words or "A parameter is wrong."))


async def _gone(request: Request, error: Exception) -> Response:
    del request, error
    return Response(status_code=499)  # nginx's number for it; it is counted, and nobody is left to read it


_HANDLERS: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
    RefusedError: _refused,
    ClientGoneError: _gone,
    HTTPException: _of_starlette,
    RequestValidationError: _of_validation,
    Exception: _refused,
}

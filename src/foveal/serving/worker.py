"""The process that computes: `python -m foveal.serving.worker FD`, started by the server and by nothing else.

It opens the exported models, says once they are warm that it is ready, and then answers requests that come as frames
(`foveal.serving.protocol`) over the socket with the number FD. It knows nothing of HTTP. A process of its own, so that
an image or a model that breaks it, or the system that ends it for want of memory, leaves the server standing.

It ends when the socket is closed, so that none is left behind. Signals from the terminal or the service manager, which
go to all processes, are the server's to answer: it lets the worker finish what it has, and closes.
"""

import io
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import IO, Any, NoReturn

from foveal.errors import ArtifactError, ConfigError, FovealError
from foveal.serving.messages import (
    Answer,
    AnswerFault,
    AnswerSeconds,
    ModelFacts,
    ServedExport,
    WorkerSettings,
    answers_frame,
    error_header,
)
from foveal.serving.protocol import Frame, ProtocolError, packed, read_frame

MAX_DECODE_THREADS = 8
MAX_ARMED_KINDS = 256
"""Ways to ask a model that are kept ready; there are 64 numbers of views alone."""


class Wire:
    """The socket, to be written from any thread."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self.stream: IO[bytes] = connection.makefile("rb", buffering=2**16)  # type: ignore[assignment]

    def send(self, header: dict[str, Any], blobs: Sequence[bytes] = ()) -> None:
        """Write a frame; where the server is gone, end the process."""
        pieces = packed(header, blobs)
        try:
            with self._lock:
                self._connection.sendall(b"".join(pieces))
        except OSError:
            _end(0)


class ServedModel:
    """A model and one way to ask it: the work that a pipeline does for it.

    Args:
        predictor: `foveal.exported.engine.OnnxPredictor`, with its views.
        wants_heatmap: whether answers shall say where in the image the class was seen.
    """

    def __init__(self, predictor: Any, *, wants_heatmap: bool) -> None:
        self._predictor = predictor
        self._wants_heatmap = wants_heatmap
        self.num_views = len(predictor.views)

    def prepare(self, content: bytes) -> Any:
        """Decode a file and cut what the networks see of it."""
        return self._predictor.prepare(content)

    def compute(self, prepared: Sequence[Any]) -> list[Answer]:
        """The answers to images that are prepared."""
        import numpy as np

        predictor, reason, maps = self._predictor, "", None
        if not self._wants_heatmap:
            found = predictor.probabilities(prepared)
        elif not predictor.spec.heatmap:
            found, reason = predictor.probabilities(prepared), predictor.spec.heatmap_reason
        else:
            found, maps = predictor.probabilities_and_heatmaps(prepared)
        nothing = AnswerSeconds(0.0, 0.0, 0.0, 0)
        answers = []
        for number, probabilities in enumerate(found):
            if not np.isfinite(probabilities).all():
                fault = AnswerFault("model_failed", "the model's answer to it is no finite number")
                answers.append(Answer.failed(fault, nothing))
                continue
            top = int(probabilities.argmax())
            heatmap = None if maps is None else _to_unit(maps[number, top])
            name = predictor.class_names[top]
            answers.append(Answer("ok", name, float(probabilities[top]), probabilities, heatmap, reason, None, nothing))
        return answers


def _to_unit(heatmap: Any) -> Any:
    """What speaks for the class, as a share of the most that any place says: float32 [h, w], 0..1."""
    import numpy as np

    positive = np.maximum(np.nan_to_num(heatmap, nan=0.0, posinf=0.0, neginf=0.0), 0.0)
    most = float(positive.max())
    return (positive / most if most > 0.0 else positive).astype(np.float32)


class Worker:
    """Answers the frames that come.

    Args:
        settings: from the first frame.
        wire: where frames come from and answers go.

    Raises:
        FovealError: a model cannot be opened; its words say which and why.
    """

    def __init__(self, settings: WorkerSettings, wire: Wire) -> None:
        # Here and not above: signals are to be ignored before anything that takes time.
        from foveal.exported.engine import OnnxPredictor
        from foveal.machine import num_cpus
        from foveal.serving.batching import Pipeline

        self._wire = wire
        num_threads = settings.num_threads or num_cpus()
        self._predictors: dict[str, Any] = {}
        for export in settings.exports:
            try:
                predictor = OnnxPredictor(export.path, batch_size=settings.max_batch, num_threads=num_threads)
            except FovealError as error:
                raise _of_model(error, export) from error
            _warm_up(predictor)
            self._predictors[export.name] = predictor
        self._works: dict[tuple[str, str, bool], ServedModel] = {}
        self._pipeline = Pipeline(
            self._deliver,
            num_decode_threads=settings.num_decode_threads or min(MAX_DECODE_THREADS, num_cpus()),
            max_batch=settings.max_batch,
            max_wait_seconds=settings.max_wait_ms / 1000.0,
            on_batch=self._tell_of_batch,
            on_fault=_report,
        )

    def facts(self) -> list[ModelFacts]:
        """Of all models, in the order in which they were given."""
        return [
            _facts(name, predictor, is_default=number == 0)
            for number, (name, predictor) in enumerate(self._predictors.items())
        ]

    def run(self) -> None:
        """Answer until the other side closes.

        Raises:
            ProtocolError: what comes is no frame.
        """
        self._wire.send({"type": "ready", "pid": os.getpid(), "models": [facts.to_dict() for facts in self.facts()]})
        while (frame := read_frame(self._wire.stream)) is not None:
            if frame.type == "predict":
                self._take(frame)
            elif frame.type == "cancel":
                self._pipeline.cancel(int(frame.header["id"]))
            else:
                raise ProtocolError(f"A frame of the unknown type {frame.type!r}.")

    def _take(self, frame: Frame) -> None:
        from foveal.serving.batching import Request

        header = frame.header
        request_id = int(header["id"])
        try:
            kind = (str(header["model"]), str(header["tta"]).strip().lower(), bool(header["heatmap"]))
            if not frame.blobs:
                raise ConfigError("At least one image was expected, and none came.")
            request = Request(
                request_id,
                kind,
                self._work(kind),
                len(frame.blobs),
                time.monotonic() + float(header["seconds_left"]),
            )
        except FovealError as error:
            self._wire.send(error_header(error, request_id=request_id))
            return
        self._pipeline.submit(request, frame.blobs)

    def _work(self, kind: tuple[str, str, bool]) -> ServedModel:
        if kind not in self._works:
            name, tta, wants_heatmap = kind
            if name not in self._predictors:
                raise ConfigError(f"There is no model {name!r}; there is {', '.join(self._predictors)}.")
            if len(self._works) >= MAX_ARMED_KINDS:
                self._works.clear()
            self._works[kind] = ServedModel(self._predictors[name].with_tta(tta), wants_heatmap=wants_heatmap)
        return self._works[kind]

    def _deliver(self, request: Any) -> None:
        if request.is_dropped or any(answer is None for answer in request.answers):
            self._wire.send({"type": "dropped", "id": request.id, "reason": request.is_dropped})
        else:
            self._wire.send(*answers_frame(request.id, request.answers))

    def _tell_of_batch(self, kind: Any, num_images: int, seconds: float) -> None:
        self._wire.send({"type": "batch", "model": kind[0], "size": num_images, "seconds": seconds})


def _of_model(error: FovealError, export: ServedExport) -> FovealError:
    """The same error; which of several models it is about is part of its words."""
    if export.path in error.message:
        return error
    return type(error)(f"{export.path}: {error.message}", problems=error.problems, fix=error.fix)


def _warm_up(predictor: Any) -> None:
    """One image all the way, decoding included: the first of a process costs many times what the second does."""
    from PIL import Image

    content = io.BytesIO()
    side_px = predictor.looks[0][0].size_px
    Image.effect_noise((side_px + 9, side_px + 5), 60.0).convert("RGB").save(content, "JPEG")
    predictor.probabilities([predictor.prepare(content.getvalue())])


def _facts(name: str, predictor: Any, *, is_default: bool) -> ModelFacts:
    from foveal.pixels.views import TTA_WAYS

    spec = predictor.spec
    geometries = {look.preprocessing.geometry() for look in spec.looks}
    geometry = geometries.pop() if len(geometries) == 1 else None
    return ModelFacts(
        name=name,
        architecture=spec.architecture,
        class_names=spec.class_names,
        precision=spec.precision,
        size_px=max(look.preprocessing.size_px for look in spec.looks),
        tta=TTA_WAYS,
        heatmap=spec.heatmap,
        heatmap_reason=spec.heatmap_reason,
        licence=spec.weights.licence,
        metrics=spec.metrics,
        is_default=is_default,
        ordered=spec.ordered,
        fit=geometry.fit if geometry else "",
        store_px=geometry.store_px if geometry else 0,
        background=spec.looks[0].preprocessing.background,
    )


def _report(error: BaseException) -> None:
    """Onto the server's own log; never into an answer. The words of an error may quote a file: they are one line."""
    from foveal.pixels.rejection import one_line

    places = "".join(traceback.format_tb(error.__traceback__))
    sys.stderr.write(f"{places}{type(error).__name__}: {one_line(str(error))}\n")
    sys.stderr.flush()


def _end(exit_code: int) -> NoReturn:
    """End at once, whatever the threads are doing: nothing of this process outlives it that could be half written."""
    sys.stderr.flush()
    os._exit(exit_code)


def _thread_broke(arguments: threading.ExceptHookArgs) -> None:
    # A thread that is gone would leave requests unanswered for ever; a new process answers them.
    if arguments.exc_value is not None:
        _report(arguments.exc_value)
    _end(1)


def _ignore_signals() -> None:
    ignored = [signal.SIGINT, signal.SIGTERM]
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        # The server starts this process with them blocked.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ignored)


def main(arguments: Sequence[str]) -> int:
    """Serve until the other side is gone.

    Args:
        arguments: the number of the socket.

    Returns:
        The exit code.
    """
    _ignore_signals()
    threading.excepthook = _thread_broke
    wire = Wire(socket.socket(fileno=int(arguments[0])))
    try:
        first = read_frame(wire.stream)
        if first is not None:
            _opened(WorkerSettings.from_header(first.header), wire).run()
    except FovealError as error:
        wire.send(error_header(error))
        return error.exit_code
    except ConnectionError:
        # The server is gone while something was on its way.
        return 0
    return 0


def _opened(settings: WorkerSettings, wire: Wire) -> Worker:
    try:
        return Worker(settings, wire)
    except OSError as error:
        raise ArtifactError(f"A model cannot be read: {error}") from error


if __name__ == "__main__":
    # Not `sys.exit`, which would wait for ONNX Runtime to take down what the system takes down anyway.
    _end(main(sys.argv[1:]))

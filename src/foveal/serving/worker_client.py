"""The server's side of the worker: start it, ask it, notice when it dies, start it again."""

import asyncio
import contextlib
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from foveal.errors import ArtifactError, ConfigError, FovealError
from foveal.serving.messages import Answer, ModelFacts, WorkerSettings, read_answers, read_error
from foveal.serving.protocol import Frame, ProtocolError, TornFrameError, packed, receive_frame
from foveal.serving.worker_process import ending, launched, reaped

START_SECONDS = 300.0
"""A worker that is not ready by then is ended and started again."""
STALL_SECONDS = 120.0
"""A worker that says nothing for so long, beyond the time that its requests have, hangs."""
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 10.0
CALM_SECONDS = 30.0
"""A worker that lived for so long did not die of what killed the one before; the pauses start anew."""
REAP_SECONDS = 5.0


class Busy(FovealError):  # noqa: N818 - a state of affairs, not a fault
    """The queue is full, and nothing was queued."""


class NotReady(FovealError):  # noqa: N818
    """No worker is ready: it is starting, or it died with the request in its hands."""


class TimedOut(FovealError):  # noqa: N818
    """The answer did not come within the time that the request had."""


@dataclass(slots=True)
class WorkerStatistics:
    """What was counted since the start, for monitoring.

    Attributes:
        num_restarts: workers started after the first.
        num_queued_images: images that wait or are worked on now.
        num_queued_bytes: likewise, the size of their files.
        num_images: by (model, "ok" or "failed"): images that were answered.
        num_requests: by what became of them: answered, busy, not_ready, timed_out, cancelled, refused.
        num_batches: by (model, images in the batch).
        compute_seconds: by model, in batches.
    """

    num_restarts: int = 0
    num_queued_images: int = 0
    num_queued_bytes: int = 0
    num_images: Counter[tuple[str, str]] = field(default_factory=Counter)
    num_requests: Counter[str] = field(default_factory=Counter)
    num_batches: Counter[tuple[str, int]] = field(default_factory=Counter)
    compute_seconds: Counter[str] = field(default_factory=Counter)


@dataclass(eq=False, slots=True)
class _Sent:
    """A request that the worker has, and that counts against the queue until the worker is done with it."""

    answer: "asyncio.Future[list[Answer]]"
    model: str
    num_images: int
    num_bytes: int
    due: float


class WorkerClient:
    """Starts a worker process and keeps one running; to be used from one event loop.

    Args:
        settings: what the worker shall do.
        on_event: told of deaths and restarts, one sentence each; for the server's log.
        start_seconds: how long a worker may take until it is ready.
        stall_seconds: how long a worker that has work may say nothing.

    Example:
        >>> client = WorkerClient(settings)  # doctest: +SKIP
        >>> client.launch()  # at once, while the rest is still imported  # doctest: +SKIP
        >>> await client.start()  # doctest: +SKIP
        >>> (answer,) = await client.predict("signs", [content], deadline_seconds=10)  # doctest: +SKIP
        >>> await client.stop(drain_seconds=10)  # doctest: +SKIP
    """

    def __init__(
        self,
        settings: WorkerSettings,
        *,
        on_event: Callable[[str], None] = lambda _: None,
        start_seconds: float = START_SECONDS,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        self.settings = settings
        self.statistics = WorkerStatistics()
        self.models: tuple[ModelFacts, ...] = ()
        self.is_ready = False
        self._on_event, self._start_seconds, self._stall_seconds = on_event, start_seconds, stall_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._sent: dict[int, _Sent] = {}
        self._last_id = 0
        self._last_heard = 0.0
        self._is_stopping = False
        self._keeper: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def pid(self) -> int | None:
        """Of the worker that runs now."""
        return self._process.pid if self._process else None

    def launch(self) -> None:
        """Start the process and return at once; `start` does so too where this was not called before.

        Raises:
            FovealError: this system cannot hand a socket to a child process.
        """
        self._process, self._connection = launched(self.settings)

    async def start(self) -> None:
        """Wait until the first worker is ready; from then on there is one, or one is being started.

        Raises:
            FovealError: the worker's own words, such as that a model is damaged; or it died without any.
        """
        if self._process is None:
            self.launch()
        try:
            reader = await self._become_ready()
        except BaseException:
            await self._bury()
            raise
        self._keeper = asyncio.create_task(self._keep_running(reader))

    async def stop(self, drain_seconds: float) -> None:
        """Let the worker answer what it has, for so long at most, and end it. New requests are `NotReady`."""
        self._is_stopping = True
        self.is_ready = False
        if self._writer is not None and not self._writer.is_closing():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), drain_seconds)
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        await self._bury()
        self._fail_all()

    async def predict(
        self,
        model: str,
        images: Sequence[bytes],
        *,
        tta: str = "none",
        heatmap: bool = False,
        deadline_seconds: float = 30.0,
    ) -> list[Answer]:
        """What a model says of images, in order; one that cannot be read fails alone.

        Cancelling the task that waits takes back what is still queued.

        Args:
            model: one of `models`, by name.
            images: the contents of image files.
            tta: test-time augmentation: none, flip, dihedral, crops5 or a number of views.
            heatmap: whether to say where in the image the class was seen.
            deadline_seconds: what is not computed by then is dropped.

        Raises:
            Busy: the queue is full, and nothing was queued.
            NotReady: there is no worker now, or it died.
            TimedOut: it took too long.
            ConfigError: there is no such model or way of test-time augmentation, or no image.
        """
        counts = self.statistics.num_requests
        if not self.is_ready or self._writer is None:
            counts["not_ready"] += 1
            raise NotReady("The models are not ready yet.", fix="try again in some seconds.")
        if not images:
            raise ConfigError("At least one image was expected, and none came.")
        sent = self._admit(model, images, deadline_seconds)
        request_id = self._last_id = self._last_id + 1
        self._sent[request_id] = sent
        self._idle.clear()
        header = {"type": "predict", "id": request_id, "model": model, "tta": tta, "heatmap": heatmap}
        for piece in packed({**header, "seconds_left": deadline_seconds}, images):
            self._writer.write(piece)
        try:
            answers = await asyncio.wait_for(asyncio.shield(sent.answer), deadline_seconds)
        except (TimeoutError, TimedOut):
            counts["timed_out"] += 1
            self._cancel(request_id)
            raise TimedOut(f"There was no answer within {deadline_seconds:g} seconds.") from None
        except asyncio.CancelledError:
            counts["cancelled"] += 1
            self._cancel(request_id)
            raise
        except NotReady:
            counts["not_ready"] += 1
            raise
        except FovealError:
            counts["refused"] += 1
            raise
        counts["answered"] += 1
        return answers

    def _admit(self, model: str, images: Sequence[bytes], deadline_seconds: float) -> _Sent:
        """Count a request into the queue.

        Raises:
            Busy: there is no room.
        """
        now, limits = self.statistics, self.settings
        num_bytes = sum(len(image) for image in images)
        is_alone = now.num_queued_images == 0
        too_many = now.num_queued_images + len(images) > limits.queue_size
        too_much = now.num_queued_bytes + num_bytes > limits.queue_mib * 2**20
        # A request that is larger than the queue gets its turn when there is nothing else.
        if (too_many or too_much) and not is_alone:
            now.num_requests["busy"] += 1
            raise Busy(f"{now.num_queued_images} images are waiting already.", fix="try again in a second.")
        now.num_queued_images += len(images)
        now.num_queued_bytes += num_bytes
        if not self._sent:
            self._last_heard = time.monotonic()
        answer: asyncio.Future[list[Answer]] = asyncio.get_running_loop().create_future()
        # Nobody may be waiting any more when it fails.
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())
        return _Sent(answer, model, len(images), num_bytes, time.monotonic() + deadline_seconds)

    def _cancel(self, request_id: int) -> None:
        if request_id in self._sent and self._writer is not None and not self._writer.is_closing():
            for piece in packed({"type": "cancel", "id": request_id}):
                self._writer.write(piece)

    # --- the life of workers

    async def _keep_running(self, reader: asyncio.StreamReader) -> None:
        """Read what the worker says; when it is gone, start another, for ever."""
        pause, since = FIRST_PAUSE_SECONDS, time.monotonic()
        while True:
            why = await self._listen(reader)
            self.is_ready = False
            exit_code = await self._bury(is_trusted=not why)
            self._fail_all()
            if time.monotonic() - since > CALM_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            while True:
                self._on_event(f"The worker is gone ({why or ending(exit_code)}); another starts in {pause:g} s.")
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
                self.statistics.num_restarts += 1
                try:
                    self.launch()
                    reader = await self._become_ready()
                    break
                except (FovealError, OSError) as error:
                    exit_code = await self._bury()
                    why = str(error)
            since = time.monotonic()
            self._on_event("The worker is ready again.")

    async def _become_ready(self) -> asyncio.StreamReader:
        """Wait for the first word of the process that was launched.

        Raises:
            FovealError: its words, or that it died or took too long.
        """
        try:
            async with asyncio.timeout(self._start_seconds):
                reader, self._writer = await asyncio.open_connection(sock=self._connection)
                frame = await receive_frame(reader)
        except TimeoutError:
            raise ArtifactError(f"The worker was not ready within {self._start_seconds:g} seconds.") from None
        except (OSError, TornFrameError):
            frame = None
        except ProtocolError as error:
            raise ArtifactError(f"The worker broke at its start: {error}") from error
        if frame is None:
            exit_code = await self._bury()
            raise ArtifactError(
                f"The worker ended before it was ready: {ending(exit_code)}.", fix="see what it wrote above."
            )
        if frame.type != "ready":
            raise read_error(frame.header)
        self.models = tuple(ModelFacts.from_dict(each) for each in frame.header["models"])
        self._last_heard = time.monotonic()
        self.is_ready = not self._is_stopping
        return reader

    async def _listen(self, reader: asyncio.StreamReader) -> str:
        """Hand on what the worker says until it is gone; why, where its exit code will not tell."""
        while True:
            try:
                async with asyncio.timeout(self._patience()):
                    frame = await receive_frame(reader)
                if frame is None:
                    return ""
                self._last_heard = time.monotonic()
                if (error := self._hear(frame)) is not None:
                    return error
            except TimeoutError:
                if self._sent and self._patience() <= 0.0:
                    return "it hangs"
            except (OSError, TornFrameError):
                return ""
            except ProtocolError as error:
                return str(error)
            except (KeyError, TypeError, ValueError) as error:
                return f"it made no sense: {error!r}"

    def _patience(self) -> float:
        """Seconds that the worker may still be silent."""
        if not self._sent:
            return self._stall_seconds
        last_due = max(sent.due for sent in self._sent.values())
        return max(last_due, self._last_heard) + self._stall_seconds - time.monotonic()

    def _hear(self, frame: Frame) -> str | None:
        """Deal with a frame; what is wrong with it, if anything is."""
        header = frame.header
        if frame.type == "batch":
            model, size = str(header["model"]), int(header["size"])
            self.statistics.num_batches[model, size] += 1
            self.statistics.compute_seconds[model] += float(header["seconds"])  # type: ignore[assignment]
            return None
        if frame.type == "failed":
            return str(read_error(header))
        sent = self._forget(int(header["id"]))
        if sent is None:
            return f"it answered to {header['id']}, which was not asked"
        if frame.type == "answers":
            answers = read_answers(frame)
            if len(answers) != sent.num_images:
                _fail(sent, NotReady("The worker's answer was incomplete."))
                return f"it gave {len(answers)} answers to {sent.num_images} images"
            for answer in answers:
                self.statistics.num_images[sent.model, answer.status] += 1
            if not sent.answer.done():
                sent.answer.set_result(answers)
        elif frame.type == "dropped":
            _fail(sent, TimedOut("It was too late for it."))
        elif frame.type == "refused":
            _fail(sent, read_error(header))
        else:
            return f"it said {frame.type!r}"
        return None

    def _forget(self, request_id: int) -> _Sent | None:
        sent = self._sent.pop(request_id, None)
        if sent is not None:
            self.statistics.num_queued_images -= sent.num_images
            self.statistics.num_queued_bytes -= sent.num_bytes
        if not self._sent:
            self._idle.set()
        return sent

    def _fail_all(self) -> None:
        for request_id in list(self._sent):
            sent = self._forget(request_id)
            if sent is not None:
                _fail(sent, NotReady("The worker ended with this request in its hands.", fix="try again."))

    async def _bury(self, *, is_trusted: bool = True) -> int | None:
        """Close the connection, which ends the process, and see it gone; its exit code.

        Args:
            is_trusted: whether it may take a moment to end by itself; it is killed then if it does not.
        """
        if self._writer is not None:
            self._writer.transport.abort()
        elif self._connection is not None:
            self._connection.close()
        process, self._process, self._writer, self._connection = self._process, None, None, None
        if process is None:
            return None
        return await asyncio.shield(asyncio.to_thread(reaped, process, REAP_SECONDS if is_trusted else 0.0))


def _fail(sent: _Sent, error: FovealError) -> None:
    if not sent.answer.done():
        sent.answer.set_exception(error)

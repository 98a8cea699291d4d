"""From images that arrive at any moment to batches: decoded in threads while the batch before is computed.

An image alone is never kept waiting: the computer takes what is decoded as soon as it is free, and waits for company
only where more images of the same kind are being decoded already, and for no longer than `max_wait_seconds`. Under
load, batches grow by themselves, as images come in while one is computed, up to the size that goes fastest
(`batch_sizes`).
"""

import io
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from foveal.pixels.headers import read_header
from foveal.pixels.policy import ImageRejectedError, PixelPolicy
from foveal.pixels.rejection import one_line
from foveal.pixels.sniffing import NUM_HEAD_BYTES, sniff
from foveal.serving.batch_sizes import BatchSizes
from foveal.serving.memory import give_back
from foveal.serving.messages import Answer, AnswerFault, AnswerSeconds

LARGE_PIXELS = 30_000_000
"""An image with more is decoded alone: at four and more bytes a pixel, several at once could fill the memory."""

MODEL_FAILED = "model_failed"

Kind = Hashable
"""What decides which images may be computed together."""


class Work(Protocol):
    """What is done with images of one kind."""

    @property
    def num_views(self) -> int:
        """Squares of each image that go through the network."""

    def prepare(self, content: bytes) -> Any:
        """Decode a file.

        Raises:
            ImageRejectedError: the content cannot be used.
        """

    def compute(self, prepared: Sequence[Any]) -> list[Answer]:
        """The answers to images that are prepared; their times are filled in later."""


@dataclass(eq=False, slots=True)
class Request:
    """Images that came together and are answered together.

    Attributes:
        id: the client's number.
        kind: images of equal kinds may be computed together.
        work: what to do with them.
        num_images: how many came.
        due: when nobody waits for it any more, by `time.monotonic`.
    """

    id: int
    kind: Kind
    work: Work
    num_images: int
    due: float
    answers: list[Answer | None] = field(init=False)
    num_left: int = field(init=False)
    is_dropped: Literal["", "cancelled", "late"] = field(init=False, default="")

    def __post_init__(self) -> None:
        self.answers = [None] * self.num_images
        self.num_left = self.num_images

    def is_wanted(self) -> bool:
        """Whether somebody still waits for it; once it is too late, it stays so."""
        if not self.is_dropped and time.monotonic() > self.due:
            self.is_dropped = "late"
        return not self.is_dropped


@dataclass(eq=False, slots=True)
class _Image:
    """One image on its way."""

    request: Request
    position: int
    number: int
    content: bytes
    arrived: float
    prepared: Any = None
    decode_seconds: float = 0.0
    is_the_large_one: bool = False


class Pipeline:
    """Decodes, batches and computes. All of its methods may be called from any thread.

    Args:
        deliver: called with each request once its last image is done or dropped, from the thread that did it.
        num_decode_threads: threads that decode.
        max_batch: squares that go through the network at once; at least one image.
        max_wait_seconds: how long a free computer waits for images that are being decoded.
        on_batch: called with kind, number of images and seconds after each batch.
        on_fault: called with what went wrong inside, beside answering so.
    """

    def __init__(
        self,
        deliver: Callable[[Request], None],
        *,
        num_decode_threads: int,
        max_batch: int,
        max_wait_seconds: float,
        on_batch: Callable[[Kind, int, float], None],
        on_fault: Callable[[BaseException], None],
    ) -> None:
        self._deliver, self._on_batch, self._on_fault = deliver, on_batch, on_fault
        self._max_batch, self._max_wait_seconds = max_batch, max_wait_seconds
        self._lock = threading.Lock()
        self._to_decode = threading.Condition(self._lock)
        self._to_compute = threading.Condition(self._lock)
        self._requests: dict[int, Request] = {}
        self._waiting: deque[_Image] = deque()
        self._waiting_large: deque[_Image] = deque()
        self._is_large_one_decoding = False
        self._coming: dict[Kind, int] = {}
        self._decoded: dict[Kind, deque[_Image]] = {}
        self._sizes: dict[Kind, BatchSizes] = {}
        self._num_ahead_views = 0
        self._num_taken = 0
        # One batch that is computed, the next that is ready, and what is in the hands of the decoders.
        self._max_ahead_views = 2 * max_batch + num_decode_threads
        self._is_closed = False
        self._threads = [
            threading.Thread(target=self._decode_for_ever, name=f"decode-{number}", daemon=True)
            for number in range(num_decode_threads)
        ]
        self._threads.append(threading.Thread(target=self._compute_for_ever, name="compute", daemon=True))
        for thread in self._threads:
            thread.start()

    def submit(self, request: Request, contents: Sequence[bytes]) -> None:
        """Take the images of a request; it will be delivered."""
        now = time.perf_counter()
        with self._lock:
            self._requests[request.id] = request
            for position, content in enumerate(contents):
                self._num_taken += 1
                self._waiting.append(_Image(request, position, self._num_taken, content, now))
            self._coming[request.kind] = self._coming.get(request.kind, 0) + len(contents)
            self._to_decode.notify(len(contents))

    def cancel(self, request_id: int) -> None:
        """Drop what is still queued of a request; it is delivered as soon as nothing of it is under way."""
        with self._lock:
            request = self._requests.get(request_id)
            if request is None:
                return
            request.is_dropped = "cancelled"
            gone = 0
            for queue in (self._waiting, self._waiting_large):
                kept = [image for image in queue if image.request is not request]
                gone += len(queue) - len(kept)
                queue.clear()
                queue.extend(kept)
            self._is_coming_no_more(request.kind, gone)
            ready = self._decoded.get(request.kind, deque())
            kept = [image for image in ready if image.request is not request]
            gone += len(ready) - len(kept)
            self._num_ahead_views -= (len(ready) - len(kept)) * request.work.num_views
            self._put_back(request.kind, kept)
            self._to_decode.notify_all()
            is_done = self._count_done(request, gone)
        if is_done:
            self._finish(request)

    def close(self) -> None:
        """End the threads; what is queued stays undone."""
        with self._lock:
            self._is_closed = True
            self._to_decode.notify_all()
            self._to_compute.notify_all()
        for thread in self._threads:
            thread.join()

    # --- decoding

    def _decode_for_ever(self) -> None:
        while (image := self._next_to_decode()) is not None:
            self._decode(image)

    def _next_to_decode(self) -> _Image | None:
        with self._lock:
            while not self._is_closed:
                has_room = self._num_ahead_views < self._max_ahead_views
                if has_room and self._waiting_large and not self._is_large_one_decoding:
                    image = self._waiting_large.popleft()
                    image.is_the_large_one = self._is_large_one_decoding = True
                elif has_room and self._waiting:
                    image = self._waiting.popleft()
                else:
                    self._to_decode.wait()
                    continue
                self._num_ahead_views += image.request.work.num_views
                return image
            return None

    def _decode(self, image: _Image) -> None:
        """Decode one image, or lay it aside where it is large and another large one is being decoded."""
        start = time.perf_counter()
        fault = None
        try:
            if image.request.is_wanted():
                if _num_pixels(image.content) > LARGE_PIXELS and not self._may_decode_large(image):
                    return
                image.prepared = image.request.work.prepare(image.content)
        except ImageRejectedError as error:
            fault = AnswerFault(error.code, str(error))
        # A decoder that fails in a way of its own must cost this image alone, and be heard of.
        except Exception as error:  # noqa: BLE001
            self._on_fault(error)
            fault = AnswerFault("damaged", one_line(f"it cannot be decoded: {type(error).__name__}: {error}"))
        image.decode_seconds = time.perf_counter() - start
        image.content = b""
        if image.is_the_large_one:
            give_back()
        self._decoded_one(image, fault)

    def _may_decode_large(self, image: _Image) -> bool:
        """Whether no other large image is being decoded; else this one stands in line for that."""
        with self._lock:
            if image.is_the_large_one:
                return True
            if not self._is_large_one_decoding:
                image.is_the_large_one = self._is_large_one_decoding = True
                return True
            self._num_ahead_views -= image.request.work.num_views
            self._waiting_large.append(image)
            self._to_decode.notify()
            return False

    def _decoded_one(self, image: _Image, fault: AnswerFault | None) -> None:
        request = image.request
        is_done = False
        with self._lock:
            if image.is_the_large_one:
                image.is_the_large_one = self._is_large_one_decoding = False
            self._is_coming_no_more(request.kind, 1)
            if fault is None and request.is_wanted():
                self._decoded.setdefault(request.kind, deque()).append(image)
            else:
                if fault is not None:
                    waited = max(0.0, time.perf_counter() - image.arrived - image.decode_seconds)
                    seconds = AnswerSeconds(image.decode_seconds, waited, 0.0, 0)
                    request.answers[image.position] = Answer.failed(fault, seconds)
                self._num_ahead_views -= request.work.num_views
                is_done = self._count_done(request, 1)
            self._to_compute.notify()
            self._to_decode.notify_all()
        if is_done:
            self._finish(request)

    # --- computing

    def _compute_for_ever(self) -> None:
        while (batch := self._next_batch()) is not None:
            self._compute(batch)

    def _next_batch(self) -> list[_Image] | None:
        with self._lock:
            while not self._is_closed:
                if not self._decoded:
                    self._to_compute.wait()
                    continue
                # The kind whose first image came first: no model is starved by another.
                kind = min(self._decoded, key=lambda each: self._decoded[each][0].number)
                room = self._sizes_of(self._decoded[kind][0].request).limit
                end = time.monotonic() + self._max_wait_seconds
                while kind in self._decoded and len(self._decoded[kind]) < room and self._coming.get(kind):
                    left = end - time.monotonic()
                    if left <= 0 or self._is_closed:
                        break
                    self._to_compute.wait(left)
                ready = self._decoded.get(kind, deque())
                batch = [ready.popleft() for _ in range(min(room, len(ready)))]
                self._put_back(kind, list(ready))
                if batch:
                    return batch
            return None

    def _compute(self, batch: list[_Image]) -> None:
        request = batch[0].request
        wanted = [image for image in batch if image.request.is_wanted()]
        start = time.perf_counter()
        said: list[Answer] = []
        if wanted:
            said = self._said(request.work, wanted)
        seconds = time.perf_counter() - start
        if wanted:
            self._sizes_of(request).tell(len(wanted), seconds)
            self._on_batch(request.kind, len(wanted), seconds)
        for image, answer in zip(wanted, said, strict=True):
            waited = max(0.0, start - image.arrived - image.decode_seconds)
            times = AnswerSeconds(image.decode_seconds, waited, seconds, len(wanted))
            image.request.answers[image.position] = replace(answer, seconds=times)
        done = []
        with self._lock:
            for image in batch:
                image.prepared = None
                self._num_ahead_views -= image.request.work.num_views
                if self._count_done(image.request, 1):
                    done.append(image.request)
            self._to_decode.notify_all()
        for finished in done:
            self._finish(finished)

    def _sizes_of(self, request: Request) -> BatchSizes:
        if request.kind not in self._sizes:
            self._sizes[request.kind] = BatchSizes(max(1, self._max_batch // request.work.num_views))
        return self._sizes[request.kind]

    def _said(self, work: Work, images: Sequence[_Image]) -> list[Answer]:
        """The answers; where a batch fails, each image is tried by itself, so that none fails for another."""
        try:
            return work.compute([image.prepared for image in images])
        # ONNX Runtime's errors have no common ground below Exception.
        except Exception as error:  # noqa: BLE001
            self._on_fault(error)
            if len(images) > 1:
                return [self._said(work, [image])[0] for image in images]
            words = one_line(f"the model failed on it: {type(error).__name__}: {error}")
            return [Answer.failed(AnswerFault(MODEL_FAILED, words), AnswerSeconds(0.0, 0.0, 0.0, 0))]

    def _finish(self, request: Request) -> None:
        self._deliver(request)
        with self._lock:
            del self._requests[request.id]

    # --- counting; the lock is held

    def _count_done(self, request: Request, amount: int) -> bool:
        """Whether that was the last of a request."""
        request.num_left -= amount
        return amount > 0 and request.num_left == 0

    def _is_coming_no_more(self, kind: Kind, amount: int) -> None:
        left = self._coming.get(kind, 0) - amount
        if left > 0:
            self._coming[kind] = left
        else:
            self._coming.pop(kind, None)

    def _put_back(self, kind: Kind, images: Sequence[_Image]) -> None:
        if images:
            self._decoded[kind] = deque(images)
        else:
            self._decoded.pop(kind, None)


def _num_pixels(content: bytes) -> int:
    """What the header claims.

    Raises:
        ImageRejectedError: it claims too much for anybody, or is none.
    """
    name = sniff(content[:NUM_HEAD_BYTES])
    header = read_header(name, io.BytesIO(content), len(content), PixelPolicy.max_pixels)
    return header.width * header.height

"""The pipeline by itself, with work whose beginning and end the test decides."""

import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveal.pixels.policy import ImageRejectedError
from foveal.serving import batching
from foveal.serving.batch_sizes import BatchSizes
from foveal.serving.batching import Pipeline, Request
from foveal.serving.messages import Answer, AnswerSeconds

PATIENCE_SECONDS = 20.0
NOTHING = AnswerSeconds(0.0, 0.0, 0.0, 0)


def png(width: int = 4, height: int = 4, value: int = 0) -> bytes:
    content = io.BytesIO()
    Image.new("L", (width, height), value).save(content, "PNG")
    return content.getvalue()


class Work:
    """Answers with the file's content; may be held up, and fails where it is told to."""

    def __init__(self, num_views: int = 1) -> None:
        self.num_views = num_views
        self.batches: list[list[bytes]] = []
        self.may_compute, self.may_decode = threading.Event(), threading.Event()
        self.may_compute.set()
        self.may_decode.set()
        self.is_computing = threading.Event()
        self.bad: set[bytes] = set()
        self.breaks_model: set[bytes] = set()
        self.num_decoding = self.most_decoding = 0
        self._lock = threading.Lock()

    def prepare(self, content: bytes) -> bytes:
        with self._lock:
            self.num_decoding += 1
            self.most_decoding = max(self.most_decoding, self.num_decoding)
        assert self.may_decode.wait(PATIENCE_SECONDS)
        with self._lock:
            self.num_decoding -= 1
        if content in self.bad:
            raise ImageRejectedError("it is bad", "damaged")
        return content

    def compute(self, prepared: Sequence[Any]) -> list[Answer]:
        self.is_computing.set()
        assert self.may_compute.wait(PATIENCE_SECONDS)
        self.batches.append(list(prepared))
        if self.breaks_model & set(prepared):
            raise RuntimeError("cannot compute")
        return [Answer("ok", str(hash(each)), 1.0, np.ones(1), None, "", None, NOTHING) for each in prepared]


class Bench:
    """A pipeline and what it delivered."""

    def __init__(self, **settings: Any) -> None:
        self.delivered: dict[int, Request] = {}
        self.faults: list[BaseException] = []
        self.sizes: list[int] = []
        self._changed = threading.Condition()
        chosen = {"num_decode_threads": 2, "max_batch": 8, "max_wait_seconds": 0.0, **settings}
        self.pipeline = Pipeline(
            self._deliver,
            on_batch=lambda kind, size, seconds: self.sizes.append(size),
            on_fault=self.faults.append,
            **chosen,
        )

    def _deliver(self, request: Request) -> None:
        with self._changed:
            assert request.id not in self.delivered
            self.delivered[request.id] = request
            self._changed.notify_all()

    def submit(
        self, number: int, work: Work, contents: Sequence[bytes], kind: str = "a", seconds: float = PATIENCE_SECONDS
    ) -> None:
        due = time.monotonic() + seconds
        self.pipeline.submit(Request(number, kind, work, len(contents), due), contents)

    def wait_for(self, *numbers: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: set(numbers) <= set(self.delivered), PATIENCE_SECONDS)

    def codes(self, number: int) -> list[str]:
        answers = self.delivered[number].answers
        return ["none" if each is None else each.error.code if each.error else "ok" for each in answers]


@pytest.fixture
def make_bench() -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(**settings: Any) -> Bench:
        made.append(Bench(**settings))
        return made[-1]

    yield make
    for bench in made:
        bench.pipeline.close()


def until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_an_image_alone_does_not_wait_for_company(make_bench: Callable[..., Bench]) -> None:
    bench, work = make_bench(max_wait_seconds=PATIENCE_SECONDS), Work()
    start = time.monotonic()
    bench.submit(1, work, [png()])
    bench.wait_for(1)
    assert time.monotonic() - start < PATIENCE_SECONDS / 4
    (answer,) = bench.delivered[1].answers
    assert answer is not None
    assert answer.seconds.batch_size == 1


def test_a_free_computer_waits_for_what_is_being_decoded_and_no_longer(make_bench: Callable[..., Bench]) -> None:
    bench, work = make_bench(max_wait_seconds=PATIENCE_SECONDS, num_decode_threads=1), Work()
    bench.submit(1, work, [png(value=value) for value in range(5)])
    bench.wait_for(1)
    assert bench.sizes == [5]

    impatient, slow = make_bench(max_wait_seconds=0.01, num_decode_threads=1), Work()
    slow.may_decode.clear()
    impatient.submit(1, slow, [png()])
    until(lambda: slow.num_decoding == 1)
    blocked = Work()
    # The same kind, but its decoding does not end while the first is waiting.
    impatient.submit(2, blocked, [png()])
    blocked.may_decode.clear()
    slow.may_decode.set()
    impatient.wait_for(1)
    assert impatient.sizes == [1]
    blocked.may_decode.set()


def test_what_comes_while_one_batch_is_computed_goes_into_the_next_one_up_to_the_limit(
    make_bench: Callable[..., Bench],
) -> None:
    bench, work = make_bench(), Work()
    work.may_compute.clear()
    bench.submit(0, work, [png()])
    assert work.is_computing.wait(PATIENCE_SECONDS)
    for number in range(1, 14):
        bench.submit(number, work, [png(value=number)])
    # Decoded meanwhile, while the computer is busy.
    until(lambda: len(bench.pipeline._decoded.get("a", ())) == 13)
    work.may_compute.set()
    bench.wait_for(*range(14))
    assert bench.sizes == [1, 8, 5]
    # In the order in which they came.
    assert [each for batch in work.batches for each in batch] == [png(value=number) for number in range(14)]


def test_views_count_into_a_batch(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(max_wait_seconds=PATIENCE_SECONDS)
    bench.submit(1, Work(num_views=4), [png()] * 6)
    bench.submit(2, Work(num_views=64), [png()] * 2, kind="b")
    bench.wait_for(1, 2)
    assert sorted(bench.sizes) == [1, 1, 2, 2, 2]


def test_kinds_are_never_mixed_and_the_one_that_came_first_goes_first(make_bench: Callable[..., Bench]) -> None:
    bench, first, second = make_bench(), Work(), Work()
    first.may_compute.clear()
    bench.submit(0, first, [png()])
    assert first.is_computing.wait(PATIENCE_SECONDS)
    bench.submit(1, second, [png(value=1)] * 2, kind="b")
    bench.submit(2, first, [png(value=2)] * 2)
    bench.submit(3, second, [png(value=3)], kind="b")
    until(lambda: {kind: len(ready) for kind, ready in bench.pipeline._decoded.items()} == {"a": 2, "b": 3})
    first.may_compute.set()
    bench.wait_for(0, 1, 2, 3)
    assert second.batches == [[png(value=1), png(value=1), png(value=3)]]
    assert first.batches == [[png()], [png(value=2), png(value=2)]]
    assert bench.sizes == [1, 3, 2]


def test_decoding_runs_ahead_by_so_much_and_no_more(make_bench: Callable[..., Bench]) -> None:
    bench, work = make_bench(max_batch=2), Work()
    work.may_compute.clear()
    bench.submit(1, work, [png()] * 50)
    assert work.is_computing.wait(PATIENCE_SECONDS)
    # In the works, ready, and in the hands of two decoders.
    until(lambda: (bench.pipeline._num_ahead_views, len(bench.pipeline._waiting)) == (6, 44))
    time.sleep(0.1)
    assert (bench.pipeline._num_ahead_views, len(bench.pipeline._waiting)) == (6, 44)
    work.may_compute.set()
    bench.wait_for(1)
    assert sum(bench.sizes) == 50


def test_a_bad_image_fails_alone(make_bench: Callable[..., Bench]) -> None:
    bench, work = make_bench(), Work()
    contents = [png(value=value) for value in range(32)]
    work.bad = {contents[13]}
    contents[20] = b"no image at all"
    bench.submit(1, work, contents)
    bench.wait_for(1)
    codes = bench.codes(1)
    assert [number for number, code in enumerate(codes) if code != "ok"] == [13, 20]
    assert (codes[13], codes[20]) == ("damaged", "not_an_image")
    assert bench.faults == []


def test_where_the_model_fails_on_one_the_others_are_still_answered(make_bench: Callable[..., Bench]) -> None:
    bench, work = make_bench(max_wait_seconds=PATIENCE_SECONDS), Work()
    contents = [png(value=value) for value in range(5)]
    work.breaks_model = {contents[3]}
    bench.submit(1, work, contents)
    bench.wait_for(1)
    assert bench.codes(1) == ["ok", "ok", "ok", "model_failed", "ok"]
    assert [str(fault) for fault in bench.faults] == ["cannot compute"] * 2


def test_an_odd_decoder_costs_one_image_and_is_heard_of(make_bench: Callable[..., Bench]) -> None:
    bench, work = make_bench(), Work()

    def broken(content: bytes) -> bytes:
        raise ZeroDivisionError("odd")

    work.prepare = broken  # type: ignore[method-assign]
    bench.submit(1, work, [png()])
    bench.submit(2, Work(), [png()], kind="b")
    bench.wait_for(1, 2)
    assert (bench.codes(1), bench.codes(2)) == (["damaged"], ["ok"])
    assert [type(fault) for fault in bench.faults] == [ZeroDivisionError]


def test_what_nobody_waits_for_is_not_computed(make_bench: Callable[..., Bench]) -> None:
    bench, work = make_bench(max_batch=1), Work()
    work.may_compute.clear()
    bench.submit(0, work, [png()])
    assert work.is_computing.wait(PATIENCE_SECONDS)
    bench.submit(1, work, [png(value=1)] * 20)
    bench.submit(2, work, [png(value=2)] * 3, seconds=0.05)
    bench.submit(3, work, [png(value=3)])
    # What waits goes at once; the computer is still busy with another.
    until(lambda: len(bench.pipeline._decoded.get("a", ())) >= 2)
    bench.pipeline.cancel(1)
    bench.wait_for(1)
    bench.pipeline.cancel(1)
    bench.pipeline.cancel(99)
    time.sleep(0.1)
    work.may_compute.set()
    bench.wait_for(0, 1, 2, 3)
    assert [bench.delivered[number].is_dropped for number in range(4)] == ["", "cancelled", "late", ""]
    assert work.batches == [[png()], [png(value=3)]]
    until(lambda: bench.pipeline._num_ahead_views == 0)
    assert bench.pipeline._coming == {}
    assert bench.pipeline._requests == {}


def test_large_images_are_decoded_one_at_a_time_while_small_ones_pass(
    make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "LARGE_PIXELS", 100)
    bench, large, small = make_bench(num_decode_threads=4), Work(), Work()
    large.may_decode.clear()
    bench.submit(1, large, [png(20, 20)] * 5)
    bench.submit(2, small, [png()] * 5, kind="b")
    bench.wait_for(2)
    assert large.most_decoding == 1
    assert 1 not in bench.delivered
    large.may_decode.set()
    bench.wait_for(1)
    assert large.most_decoding == 1
    assert bench.codes(1) == ["ok"] * 5
    # The right to decode a large one is given back, also by one that is bad or not wanted any more.
    large.bad = {png(21, 20)}
    bench.submit(3, large, [png(21, 20)])
    bench.submit(4, large, [png(20, 20)], seconds=-1.0)
    bench.submit(5, large, [png(20, 20)] * 3)
    bench.wait_for(3, 4, 5)
    assert (bench.codes(3), bench.codes(4), bench.codes(5)) == (["damaged"], ["none"], ["ok"] * 3)


def test_a_bomb_is_refused_by_its_header(make_bench: Callable[..., Bench]) -> None:
    header = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + (50_000).to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    bench, work = make_bench(), Work()
    bench.submit(1, work, [header + b"\x00" * 100])
    bench.wait_for(1)
    assert bench.codes(1) == ["too_large"]
    assert work.most_decoding == 0


def told(most: int, seconds_of: Callable[[int], float], num_batches: int) -> list[int]:
    sizes = BatchSizes(most)
    chosen = []
    for _ in range(num_batches):
        chosen.append(sizes.limit)
        sizes.tell(sizes.limit, seconds_of(chosen[-1]))
    return chosen


def test_batches_take_the_size_that_goes_fastest() -> None:
    # A fixed cost for each batch: the largest. Images that get in each other's way: the smallest.
    shared = told(8, lambda size: 1.0 + 0.1 * size, 49)
    assert shared[:12] == [8, 8, 8, 4, 4, 4, 2, 2, 2, 1, 1, 1]
    assert set(shared[12:]) == {8}
    assert set(told(8, lambda size: size**1.5, 49)[12:]) == {1}
    assert set(told(12, lambda size: 5.0 + (size - 4) ** 2, 49)[15:]) == {4}
    assert told(1, float, 5) == [1] * 5


def test_the_fastest_size_is_looked_for_again_when_the_machine_changes() -> None:
    now = iter(range(10**6))
    chosen = told(4, lambda size: size**1.5 if next(now) < 100 else 1.0, 2500)
    assert set(chosen[12:49]) == {1}
    assert set(chosen[-40:]) == {4}

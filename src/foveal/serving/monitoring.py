"""What the server counts, in the text that Prometheus reads. Nothing of it is shared within the process."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from foveal.serving.messages import Answer
from foveal.serving.worker_client import WorkerStatistics
from foveal.version import __version__

CONTENT_TYPE = CONTENT_TYPE_LATEST
OTHER_ROUTE = "other"
"""Label of all paths that are no route: clients choose paths, and each label costs memory."""

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Worker(Protocol):
    """What is asked of the worker here."""

    is_ready: bool
    statistics: WorkerStatistics


class Monitor:
    """The server's counters.

    Args:
        model_names: of the models that are served.
    """

    def __init__(self, model_names: Sequence[str]) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "foveal_requests", "Requests that were answered.", ("route", "status"), registry=self._registry
        )
        self._images = Counter("foveal_images", "Images of requests.", ("model", "status"), registry=self._registry)
        self._seconds = Histogram(
            "foveal_image_seconds",
            "Time of an image in each stage.",
            ("stage",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._total = Histogram(
            "foveal_request_seconds",
            "Time of a request for predictions, from its head to its answer.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        version = Gauge("foveal_info", "The release of foveal.", ("version",), registry=self._registry)
        version.labels(__version__).set(1)
        for stage in ("decode", "queue", "compute"):
            self._seconds.labels(stage)
        for name in model_names:
            for status in ("ok", "failed"):
                self._images.labels(name, status)

    def watch_worker(self, worker: Worker) -> None:
        """Read what is known of the worker anew each time that somebody asks."""
        self._registry.register(_WorkerFigures(worker))

    def request(self, route: str, status: int) -> None:
        """A request was answered."""
        self._requests.labels(route, str(status)).inc()

    def predicted(self, model: str, answers: Sequence[Answer], seconds: float) -> None:
        """Images were answered."""
        self._total.observe(seconds)
        for answer in answers:
            self._images.labels(model, answer.status).inc()
            self._seconds.labels("decode").observe(answer.seconds.decode)
            self._seconds.labels("queue").observe(answer.seconds.queue)
            if answer.seconds.batch_size:
                self._seconds.labels("compute").observe(answer.seconds.compute)

    def text(self) -> bytes:
        """All of it, for Prometheus."""
        return generate_latest(self._registry)


class _WorkerFigures:
    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def collect(self) -> Iterator[Metric]:
        """The figures as they are now."""
        known = self._worker.statistics
        yield GaugeMetricFamily("foveal_ready", "Whether the models are ready.", value=float(self._worker.is_ready))
        yield GaugeMetricFamily(
            "foveal_queue_images", "Images that wait or are worked on.", value=known.num_queued_images
        )
        yield GaugeMetricFamily("foveal_queue_bytes", "Size of their files.", value=known.num_queued_bytes)
        yield CounterMetricFamily("foveal_worker_restarts", "Workers after the first.", value=known.num_restarts)
        outcomes = CounterMetricFamily("foveal_queue_requests", "What became of requests.", labels=("outcome",))
        for outcome, count in sorted(known.num_requests.items()):
            outcomes.add_metric((outcome,), count)
        yield outcomes
        yield self._batches()

    def _batches(self) -> HistogramMetricFamily:
        found = HistogramMetricFamily("foveal_batch_size", "Images computed together.", labels=("model",))
        by_size = self._worker.statistics.num_batches
        for model in sorted({name for name, _ in by_size}):
            sizes = {size: count for (name, size), count in by_size.items() if name == model}
            up_to = [
                (str(float(bound)), float(sum(count for size, count in sizes.items() if size <= bound)))
                for bound in _SIZES
            ]
            whole = float(sum(sizes.values()))
            num_images = float(sum(size * count for size, count in sizes.items()))
            found.add_metric((model,), buckets=[*up_to, ("+Inf", whole)], sum_value=num_images)
        return found

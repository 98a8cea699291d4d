"""Predicting images, whatever computes: from what a caller has to squares, and from probabilities to an answer.

One path for the torch network (`foveal.inference`) and the exported one (`foveal.exported.engine`), so that both see
the same pixels and fail on the same images in the same words.
"""

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass
from itertools import islice
from os import PathLike, fspath
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveal.errors import ConfigError
from foveal.pixels.policy import (
    Geometry,
    ImageRejectedError,
    PixelPolicy,
    decode,
    decode_array,
    decode_image,
    to_store,
)
from foveal.pixels.rejection import reason_of
from foveal.pixels.views import View, view_square, views_of

ImageInput = str | PathLike[str] | bytes | Image.Image | NDArray[np.generic]

Look = tuple[Geometry, PixelPolicy]
"""What decides which pixels a network sees."""

Seen = dict[Look, list[NDArray[np.uint8]]]
"""By look: the square of each view, uint8 [size_px, size_px, 3]."""


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What the classifier says of one image, or why it says nothing.

    Attributes:
        path: the file as it was given; empty for images from memory.
        status: "ok" or "failed".
        reason: why it failed; empty otherwise.
        predicted: the most probable class; empty where it failed.
        probability: its calibrated probability; NaN where it failed.
        probabilities: float64 [classes], in the bundle's class order; NaN where it failed.
    """

    path: str
    status: str
    reason: str
    predicted: str
    probability: float
    probabilities: NDArray[np.float64]


class ImagePredictor(ABC):
    """A classifier that is ready to predict images.

    Args:
        class_names: in the order of the probabilities.
        looks: what its networks want to see; each once.
        batch_size: images that are computed together.
        num_workers: threads that decode.
        tta: test-time augmentation: none, flip, dihedral, crops5 or a number of views.

    Raises:
        ConfigError: a number is less than 1, or there is no such test-time augmentation.
    """

    def __init__(
        self, class_names: Sequence[str], looks: Sequence[Look], *, batch_size: int, num_workers: int, tta: str
    ) -> None:
        if min(batch_size, num_workers) < 1:
            raise ConfigError(f"batch_size={batch_size}, num_workers={num_workers}: both must be at least 1.")
        self.class_names, self.looks = tuple(class_names), tuple(looks)
        self.batch_size, self.num_workers = batch_size, num_workers
        self.views: tuple[View, ...] = views_of(tta)

    @property
    @abstractmethod
    def identity(self) -> str:
        """What is the same for the same network to the last bit, and for no other: a SHA-256 and the engine."""

    @abstractmethod
    def probabilities(self, seen: Sequence[Seen]) -> NDArray[np.float64]:
        """What the classifier says.

        Args:
            seen: of each image what `prepare` gave; at least one.

        Returns:
            float64 [n, classes], calibrated, the mean over the views; rows add up to 1.
        """

    def with_tta(self, tta: str) -> Self:
        """The same networks with other views.

        Raises:
            ConfigError: there is no such test-time augmentation.
        """
        other = copy(self)
        other.views = views_of(tta)
        return other

    def prepare(self, image: ImageInput) -> Seen:
        """Decode an image and cut what each network sees of it, in every view.

        Raises:
            ImageRejectedError: the content cannot be used.
            OSError: the file cannot be read.
        """
        decoded: dict[PixelPolicy, NDArray[np.uint8]] = {}
        seen: Seen = {}
        for geometry, policy in self.looks:
            if policy not in decoded:
                decoded[policy] = pixels_of(image, policy)
            stored = to_store(decoded[policy], geometry)
            seen[geometry, policy] = [view_square(stored, geometry, view) for view in self.views]
        return seen

    def __call__(self, images: ImageInput | Sequence[ImageInput]) -> Prediction | list[Prediction]:
        """Predict one image, or a list of them in order.

        Args:
            images: a path, the bytes of a file, a PIL image, an array (uint8, uint16 or float; [h, w], [h, w, 1],
                [h, w, 3] or [h, w, 4]), or a list of these.
        """
        if isinstance(images, (str, PathLike, bytes, Image.Image, np.ndarray)):
            return next(self.stream([images]))
        return list(self.stream(images))

    def stream(self, images: Iterable[ImageInput]) -> Iterator[Prediction]:
        """Predict any number of images in order, with memory that does not grow; a bad one fails alone."""
        with ThreadPoolExecutor(self.num_workers, thread_name_prefix="decode") as pool:
            under_way: deque[tuple[str, Future[Seen | str]]] = deque()
            upcoming = iter(images)
            try:
                while True:
                    # Two batches ahead: one in the works and one being decoded.
                    for image in islice(upcoming, 2 * self.batch_size - len(under_way)):
                        under_way.append((name_of(image), pool.submit(self._prepared, image)))
                    if not under_way:
                        return
                    ready = [under_way.popleft() for _ in range(min(self.batch_size, len(under_way)))]
                    yield from self._predict([name for name, _ in ready], [future.result() for _, future in ready])
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def measure_latency(self, images: Sequence[ImageInput]) -> dict[str, float] | None:
        """Milliseconds for one image at a time, decoding included, as p50 and p95, after a warm-up.

        Images that fail are not counted; None where no other is left.
        """
        times = []
        for image in [*images[:1], *images]:
            start = time.perf_counter()
            (prediction,) = self._predict([""], [self._prepared(image)])
            if prediction.status == "ok":
                times.append(1000.0 * (time.perf_counter() - start))
        times = times[1:]  # the warm-up
        if not times:
            return None
        return {"p50": float(np.percentile(times, 50)), "p95": float(np.percentile(times, 95))}

    def _prepared(self, image: ImageInput) -> Seen | str:
        """What `prepare` gives, or the reason why there is nothing to see."""
        try:
            return self.prepare(image)
        except (ImageRejectedError, OSError) as error:
            return reason_of(error)

    def _predict(self, names: Sequence[str], seen: Sequence[Seen | str]) -> Iterator[Prediction]:
        good = [squares for squares in seen if not isinstance(squares, str)]
        found: Iterator[NDArray[np.float64]] = iter(self.probabilities(good)) if good else iter(())
        for name, squares in zip(names, seen, strict=True):
            if isinstance(squares, str):
                nothing = np.full(len(self.class_names), np.nan)
                yield Prediction(name, "failed", squares, "", float("nan"), nothing)
            else:
                probabilities = next(found)
                top = int(probabilities.argmax())
                yield Prediction(name, "ok", "", self.class_names[top], float(probabilities[top]), probabilities)


def pixels_of(image: ImageInput, policy: PixelPolicy) -> NDArray[np.uint8]:
    """The pixels of an image by the pixel policy, wherever it comes from.

    Returns:
        uint8 [height, width, 3], sRGB, upright.

    Raises:
        ImageRejectedError: the content cannot be used.
        OSError: the file cannot be read.
    """
    if isinstance(image, bytes):
        return decode(image, policy).pixels
    if isinstance(image, Image.Image):
        return decode_image(image, policy).pixels
    if isinstance(image, np.ndarray):
        return decode_array(image, policy).pixels
    if "\0" in fspath(image):
        raise FileNotFoundError
    return decode(Path(image), policy).pixels


def name_of(image: ImageInput) -> str:
    """The path of an image, where it is given by one."""
    return fspath(image) if isinstance(image, (str, PathLike)) else ""

"""The one torch inference path: what evaluation measures is what prediction runs."""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from os import PathLike, fspath
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from foveal.data.batches import Batch, Batches
from foveal.errors import ConfigError
from foveal.metrics import softmax
from foveal.model.bundle import Bundle, read_bundle
from foveal.model.devices import choose_device
from foveal.pixels.policy import ImageRejectedError, decode, decode_array, decode_image, to_square, to_store

ImageInput = str | PathLike[str] | bytes | Image.Image | NDArray[np.generic]


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


def predict_logits(
    classifier: nn.Module, batches: Iterable[Batch], device: torch.device, autocast: torch.dtype | None = None
) -> Iterator[tuple[Batch, torch.Tensor]]:
    """Run a classifier over batches, leaving its training mode as it was.

    Args:
        classifier: on `device` already; a head alone where the batches hold features.
        batches: what to classify: images as uint8, or a frozen backbone's features as float32.
        device: where to.
        autocast: bfloat16 or float16 to compute in mixed precision; None for float32.

    Yields:
        Each batch with its logits: float32 [n, classes], on the device.
    """
    was_training = classifier.training
    classifier.eval()
    mixed: AbstractContextManager[object] = torch.autocast(device.type, autocast) if autocast else nullcontext()
    try:
        for batch in batches:
            with torch.inference_mode(), mixed:
                is_pixels = batch.images.dtype == torch.uint8
                logits = classifier(to_unit(batch.images, device) if is_pixels else batch.images.to(device))
            yield batch, logits.float()
    finally:
        classifier.train(was_training)


def to_unit(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """uint8 [n, 3, h, w] in 0..255 to float32 in 0..1 on the device, the memory layout kept."""
    return images.to(device, non_blocking=True).float().div_(255.0)


class Predictor:
    """A bundle that is ready to predict.

    Args:
        path: a bundle, or a run that holds one.
        device: auto, cpu, cuda or mps.
        batch_size: images that are computed together.
        num_workers: threads that decode.

    Raises:
        ArtifactError: the bundle is damaged or unknown.
        ConfigError: the device is not there, or a number is less than 1.

    Example:
        >>> predictor = Predictor("runs/signs")  # doctest: +SKIP
        >>> predictor("photo.jpg").predicted  # doctest: +SKIP
        '7'
    """

    def __init__(
        self, path: str | PathLike[str], *, device: str = "auto", batch_size: int = 32, num_workers: int = 2
    ) -> None:
        if min(batch_size, num_workers) < 1:
            raise ConfigError(f"batch_size={batch_size}, num_workers={num_workers}: both must be at least 1.")
        self._device = choose_device(device)
        self.bundle: Bundle = read_bundle(Path(path))
        self._classifier = self.bundle.build().to(self._device).to(memory_format=torch.channels_last)
        self._geometry = self.bundle.spec.preprocessing.geometry()
        self._policy = self.bundle.spec.preprocessing.policy()
        self._batch_size, self._num_workers = batch_size, num_workers

    @property
    def class_names(self) -> tuple[str, ...]:
        """Classes in the order of every array of probabilities."""
        return self.bundle.spec.class_names

    def __call__(self, images: ImageInput | Sequence[ImageInput]) -> "Prediction | list[Prediction]":
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
        with ThreadPoolExecutor(self._num_workers, thread_name_prefix="decode") as pool:
            under_way: deque[tuple[str, Future[NDArray[np.uint8] | str]]] = deque()
            upcoming = iter(images)
            try:
                while True:
                    # Two batches ahead: one in the works and one being decoded.
                    for image in islice(upcoming, 2 * self._batch_size - len(under_way)):
                        under_way.append((_name(image), pool.submit(self._square, image)))
                    if not under_way:
                        return
                    ready = [under_way.popleft() for _ in range(min(self._batch_size, len(under_way)))]
                    yield from self._predict([name for name, _ in ready], [future.result() for _, future in ready])
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def logits(self, batches: Batches) -> NDArray[np.float32]:
        """Logits of all batches, float32 [n, classes], before the temperature."""
        parts = [logits.cpu().numpy() for _, logits in predict_logits(self._classifier, batches, self._device)]
        return np.concatenate(parts) if parts else np.empty((0, len(self.class_names)), dtype=np.float32)

    def measure_latency(self, images: Sequence[ImageInput]) -> dict[str, float] | None:
        """Milliseconds for one image at a time, decoding included, as p50 and p95, after a warm-up.

        Images that fail are not counted; None where no other is left.
        """
        times = []
        for image in [*images[:1], *images]:
            start = time.perf_counter()
            (prediction,) = self._predict([""], [self._square(image)])
            if prediction.status == "ok":
                times.append(1000.0 * (time.perf_counter() - start))
        times = times[1:]  # the warm-up
        if not times:
            return None
        return {"p50": float(np.percentile(times, 50)), "p95": float(np.percentile(times, 95))}

    def _square(self, image: ImageInput) -> NDArray[np.uint8] | str:
        """The model's input square, or the reason why there is none."""
        try:
            return to_square(to_store(self._decode(image), self._geometry), self._geometry)
        except ImageRejectedError as error:
            return str(error)
        except FileNotFoundError:
            return "no such file"
        except OSError as error:
            return f"cannot be read: {error.strerror or error}"

    def _decode(self, image: ImageInput) -> NDArray[np.uint8]:
        if isinstance(image, bytes):
            return decode(image, self._policy).pixels
        if isinstance(image, Image.Image):
            return decode_image(image, self._policy).pixels
        if isinstance(image, np.ndarray):
            return decode_array(image, self._policy).pixels
        if "\0" in fspath(image):
            raise FileNotFoundError
        return decode(Path(image), self._policy).pixels

    def _predict(self, names: Sequence[str], squares: Sequence[NDArray[np.uint8] | str]) -> Iterator[Prediction]:
        good = [square for square in squares if not isinstance(square, str)]
        found: Iterator[NDArray[np.float64]] = iter(())
        if good:
            images = torch.from_numpy(np.stack(good)).permute(0, 3, 1, 2)
            batch = Batch(images, torch.full((len(good),), -1), np.arange(len(good)))
            (_, logits), *_ = predict_logits(self._classifier, [batch], self._device)
            found = iter(softmax(logits.cpu().numpy().astype(np.float64), self.bundle.spec.temperature))
        for name, square in zip(names, squares, strict=True):
            if isinstance(square, str):
                nothing = np.full(len(self.class_names), np.nan)
                yield Prediction(name, "failed", square, "", float("nan"), nothing)
            else:
                probabilities = next(found)
                top = int(probabilities.argmax())
                yield Prediction(name, "ok", "", self.class_names[top], float(probabilities[top]), probabilities)


def _name(image: ImageInput) -> str:
    return fspath(image) if isinstance(image, (str, PathLike)) else ""

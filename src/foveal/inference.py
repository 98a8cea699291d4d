"""The one torch inference path: what evaluation measures is what prediction runs."""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from copy import copy
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
from foveal.data.reading import Recipe
from foveal.data.store import PixelSource
from foveal.errors import ConfigError
from foveal.metrics import softmax
from foveal.model.bundle import Bundle, EnsembleBundle, open_bundle
from foveal.model.devices import choose_device
from foveal.model.voting import voted
from foveal.pixels.policy import (
    Geometry,
    ImageRejectedError,
    PixelPolicy,
    decode,
    decode_array,
    decode_image,
    to_store,
)
from foveal.pixels.views import View, view_square, views_of

_LEAST = 1e-30
"""Below it a probability has no logarithm to go on with."""

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
        self,
        path: str | PathLike[str],
        *,
        device: str = "auto",
        batch_size: int = 32,
        num_workers: int = 2,
        tta: str = "none",
    ) -> None:
        if min(batch_size, num_workers) < 1:
            raise ConfigError(f"batch_size={batch_size}, num_workers={num_workers}: both must be at least 1.")
        self.views = views_of(tta)
        self._device = choose_device(device)
        self.bundle: Bundle | EnsembleBundle = open_bundle(Path(path))
        networks = [self.bundle] if isinstance(self.bundle, Bundle) else self.bundle.members
        self.members = tuple(Member.of(network, self._device) for network in networks)
        self._batch_size, self._num_workers = batch_size, num_workers

    @property
    def class_names(self) -> tuple[str, ...]:
        """Classes in the order of every array of probabilities."""
        return self.bundle.spec.class_names

    @property
    def temperature(self) -> float:
        """What `logits` are divided by before the softmax."""
        return self.bundle.spec.temperature

    def with_tta(self, tta: str) -> "Predictor":
        """The same networks with other views.

        Raises:
            ConfigError: there is no such test-time augmentation.
        """
        other = copy(self)
        other.views = views_of(tta)
        return other

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
            under_way: deque[tuple[str, Future[Seen | str]]] = deque()
            upcoming = iter(images)
            try:
                while True:
                    # Two batches ahead: one in the works and one being decoded.
                    for image in islice(upcoming, 2 * self._batch_size - len(under_way)):
                        under_way.append((_name(image), pool.submit(self._seen, image)))
                    if not under_way:
                        return
                    ready = [under_way.popleft() for _ in range(min(self._batch_size, len(under_way)))]
                    yield from self._predict([name for name, _ in ready], [future.result() for _, future in ready])
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def logits(
        self, sources: Sequence[PixelSource], rows: NDArray[np.int64], *, batch_size: int, num_workers: int
    ) -> NDArray[np.float32]:
        """What the classifier says of stored images.

        Args:
            sources: stored forms by row number, one for each of `members`, as its geometry wants them.
            rows: int64 [n], which images.
            batch_size: images that are computed together.
            num_workers: threads that prepare batches ahead.

        Returns:
            float32 [n, classes]; divided by `temperature`, their softmax is the probabilities.
        """
        said = self._said_of_stored(sources, rows, batch_size=batch_size, num_workers=num_workers)
        if len(self.members) == 1 and len(self.views) == 1:
            return said[0][0]
        return self._combined(self._of_members(said))

    def member_probabilities(
        self, sources: Sequence[PixelSource], rows: NDArray[np.int64], *, batch_size: int, num_workers: int
    ) -> NDArray[np.float64]:
        """What each member says by itself of stored images; `foveal.model.voting.voted` makes one answer of it.

        Args:
            sources: as for `logits`.
            rows: int64 [n], which images.
            batch_size: images that are computed together.
            num_workers: threads that prepare batches ahead.

        Returns:
            float64 [members, n, classes], each by its own temperature; rows add up to 1.
        """
        return self._of_members(self._said_of_stored(sources, rows, batch_size=batch_size, num_workers=num_workers))

    def _said_of_stored(
        self, sources: Sequence[PixelSource], rows: NDArray[np.int64], *, batch_size: int, num_workers: int
    ) -> list[list[NDArray[np.float32]]]:
        """Logits float32 [n, classes] by member and view."""
        unlabelled = np.full(len(rows), -1, dtype=np.int64)

        def said(member: Member, source: PixelSource, view: View) -> NDArray[np.float32]:
            batches = Batches(
                source, rows, unlabelled, member.geometry, batch_size=batch_size, num_workers=num_workers, view=view
            )
            parts = [found.cpu().numpy() for _, found in predict_logits(member.classifier, batches, self._device)]
            return np.concatenate(parts) if parts else np.empty((0, len(self.class_names)), dtype=np.float32)

        return [
            [said(member, source, view) for view in self.views]
            for member, source in zip(self.members, sources, strict=True)
        ]

    def _of_members(self, said: Sequence[Sequence[NDArray[np.float32]]]) -> NDArray[np.float64]:
        """Each member's calibrated probabilities, the mean over the views: float64 [members, n, classes]."""
        return np.stack(
            [
                np.mean([softmax(seen.astype(np.float64), member.temperature) for seen in views], axis=0)
                for member, views in zip(self.members, said, strict=True)
            ]
        )

    def _combined(self, by_member: NDArray[np.float64]) -> NDArray[np.float32]:
        """One answer from those of all members.

        Args:
            by_member: float64 [members, n, classes], probabilities.

        Returns:
            float32 [n, classes], to be divided by `temperature`.
        """
        # A softmax of one temperature over a mean of softmaxes is taken back by its logarithm.
        if isinstance(self.bundle, Bundle):
            return np.asarray(np.log(np.maximum(by_member[0], _LEAST)) * self.temperature, dtype=np.float32)
        spec = self.bundle.spec
        mixed = voted(by_member, spec.vote, [member.weight for member in spec.members])
        return np.asarray(np.log(np.maximum(mixed, _LEAST)), dtype=np.float32)

    def measure_latency(self, images: Sequence[ImageInput]) -> dict[str, float] | None:
        """Milliseconds for one image at a time, decoding included, as p50 and p95, after a warm-up.

        Images that fail are not counted; None where no other is left.
        """
        times = []
        for image in [*images[:1], *images]:
            start = time.perf_counter()
            (prediction,) = self._predict([""], [self._seen(image)])
            if prediction.status == "ok":
                times.append(1000.0 * (time.perf_counter() - start))
        times = times[1:]  # the warm-up
        if not times:
            return None
        return {"p50": float(np.percentile(times, 50)), "p95": float(np.percentile(times, 95))}

    def _seen(self, image: ImageInput) -> "Seen | str":
        """What each member sees of an image, or the reason why there is nothing to see."""
        decoded: dict[PixelPolicy, NDArray[np.uint8]] = {}
        seen: Seen = {}
        try:
            for member in self.members:
                if member.policy not in decoded:
                    decoded[member.policy] = _decode(image, member.policy)
                if member.look not in seen:
                    stored = to_store(decoded[member.policy], member.geometry)
                    seen[member.look] = [view_square(stored, member.geometry, view) for view in self.views]
        except ImageRejectedError as error:
            return str(error)
        except FileNotFoundError:
            return "no such file"
        except OSError as error:
            return f"cannot be read: {error.strerror or error}"
        return seen

    def _predict(self, names: Sequence[str], seen: "Sequence[Seen | str]") -> Iterator[Prediction]:
        good = [squares for squares in seen if not isinstance(squares, str)]
        found: Iterator[NDArray[np.float64]] = iter(())
        if good:
            views = range(len(self.views))
            said = [
                [self._said(member, [each[member.look][view] for each in good]) for view in views]
                for member in self.members
            ]
            plain = len(self.members) == 1 and len(self.views) == 1
            logits = said[0][0] if plain else self._combined(self._of_members(said))
            found = iter(softmax(logits.astype(np.float64), self.temperature))
        for name, squares in zip(names, seen, strict=True):
            if isinstance(squares, str):
                nothing = np.full(len(self.class_names), np.nan)
                yield Prediction(name, "failed", squares, "", float("nan"), nothing)
            else:
                probabilities = next(found)
                top = int(probabilities.argmax())
                yield Prediction(name, "ok", "", self.class_names[top], float(probabilities[top]), probabilities)

    def _said(self, member: "Member", squares: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        images = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2)
        batch = Batch(images, torch.full((len(squares),), -1), np.arange(len(squares)))
        (_, logits), *_ = predict_logits(member.classifier, [batch], self._device)
        return np.asarray(logits.cpu().numpy())


@dataclass(frozen=True, eq=False)
class Member:
    """One network of a predictor, ready to be asked.

    Attributes:
        bundle: what it was read from.
        classifier: on the device.
        geometry: the square that it sees.
        policy: how files become pixels for it.
    """

    bundle: Bundle
    classifier: nn.Module
    geometry: Geometry
    policy: PixelPolicy

    @classmethod
    def of(cls, bundle: Bundle, device: torch.device) -> "Member":
        """Build it."""
        classifier = bundle.build().to(device).to(memory_format=torch.channels_last)
        preprocessing = bundle.spec.preprocessing
        return cls(bundle, classifier, preprocessing.geometry(), preprocessing.policy())

    @property
    def temperature(self) -> float:
        """What its logits are divided by before the softmax."""
        return self.bundle.spec.temperature

    @property
    def look(self) -> tuple[Geometry, PixelPolicy]:
        """What decides which pixels it sees; members with the same share them."""
        return self.geometry, self.policy

    @property
    def recipe(self) -> Recipe:
        """How files become the stored form that it wants."""
        return Recipe(self.geometry, self.policy, self.bundle.spec.training_data.box_margin)


Seen = dict[tuple[Geometry, PixelPolicy], list[NDArray[np.uint8]]]
"""By what decides of the pixels: the square of each view, uint8 [size_px, size_px, 3]."""


def _decode(image: ImageInput, policy: PixelPolicy) -> NDArray[np.uint8]:
    if isinstance(image, bytes):
        return decode(image, policy).pixels
    if isinstance(image, Image.Image):
        return decode_image(image, policy).pixels
    if isinstance(image, np.ndarray):
        return decode_array(image, policy).pixels
    if "\0" in fspath(image):
        raise FileNotFoundError
    return decode(Path(image), policy).pixels


def _name(image: ImageInput) -> str:
    return fspath(image) if isinstance(image, (str, PathLike)) else ""

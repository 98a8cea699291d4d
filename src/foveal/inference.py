"""The one torch inference path: what evaluation measures is what prediction runs."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from foveal.data.batches import Batch, Batches
from foveal.data.reading import Recipe
from foveal.data.store import PixelSource
from foveal.files import sha256_file
from foveal.metrics import softmax
from foveal.model.bundle import BUNDLE_FILE, Bundle, EnsembleBundle, open_bundle
from foveal.model.devices import choose_device
from foveal.model.voting import logits_of, voted
from foveal.pixels.policy import Geometry, PixelPolicy
from foveal.pixels.views import View
from foveal.prediction import ImagePredictor, Look, Seen


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


class Predictor(ImagePredictor):
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
        self._device = choose_device(device)
        self.bundle: Bundle | EnsembleBundle = open_bundle(Path(path))
        networks = [self.bundle] if isinstance(self.bundle, Bundle) else self.bundle.members
        self.members = tuple(Member.of(network, self._device) for network in networks)
        super().__init__(
            self.bundle.spec.class_names,
            tuple(dict.fromkeys(member.look for member in self.members)),
            batch_size=batch_size,
            num_workers=num_workers,
            tta=tta,
        )

    @property
    def identity(self) -> str:
        """The SHA-256 of bundle.json, which holds those of all other files."""
        return f"torch {sha256_file(self.bundle.path / BUNDLE_FILE)}"

    @property
    def temperature(self) -> float:
        """What `logits` are divided by before the softmax."""
        return self.bundle.spec.temperature

    def probabilities(self, seen: Sequence[Seen]) -> NDArray[np.float64]:
        """What the classifier says of images, see `ImagePredictor.probabilities`."""
        views = range(len(self.views))
        said = [
            [self._said(member, [each[member.look][view] for each in seen]) for view in views]
            for member in self.members
        ]
        plain = len(self.members) == 1 and len(self.views) == 1
        logits = said[0][0] if plain else self._combined(self._of_members(said))
        return softmax(logits.astype(np.float64), self.temperature)

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
            return logits_of(by_member[0], self.temperature).astype(np.float32)
        spec = self.bundle.spec
        mixed = voted(by_member, spec.vote, [member.weight for member in spec.members])
        return logits_of(mixed).astype(np.float32)

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
    def look(self) -> Look:
        """What decides which pixels it sees; members with the same share them."""
        return self.geometry, self.policy

    @property
    def recipe(self) -> Recipe:
        """How files become the stored form that it wants."""
        return Recipe(self.geometry, self.policy, self.bundle.spec.training_data.box_margin)

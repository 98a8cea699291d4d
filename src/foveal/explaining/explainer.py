"""Explaining the answers of a run or bundle: the map of each network of it, laid over the picture a person sees."""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from foveal.errors import ConfigError
from foveal.explaining.explanation import PICTURE_PX, Explanation, MemberMap
from foveal.explaining.layers import TargetLayer, target_layers
from foveal.explaining.methods import CLASS_METHODS, Method, choose_method, raw_maps
from foveal.explaining.placement import placement_of
from foveal.inference import Member, Predictor, to_unit
from foveal.model.build import Classifier
from foveal.model.bundle import Bundle
from foveal.pixels.policy import ImageRejectedError, PixelPolicy
from foveal.pixels.rejection import reason_of
from foveal.prediction import ImageInput, Prediction, Seen, name_of, pixels_of


class Explainer:
    """A run or bundle that is ready to explain its answers.

    Args:
        path: a bundle, or a run that holds one.
        method: gradcam, gradcam++, hirescam, eigencam, rollout, or auto: HiRes-CAM where there is a gradient.
        device: auto, cpu, cuda or mps.
        batch_size: images that are computed together.
        num_workers: threads that decode.

    Raises:
        ArtifactError: the bundle is damaged or unknown.
        ConfigError: there is no such method or device, or a network does not allow it; with the reason.
        MissingExtraError: the grad-cam library is not installed.

    Example:
        >>> explain = Explainer("runs/signs")  # doctest: +SKIP
        >>> explain("photo.jpg").peak  # doctest: +SKIP
        (41.2, 60.8)
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        method: str = "auto",
        device: str = "auto",
        batch_size: int = 16,
        num_workers: int = 2,
    ) -> None:
        self.predictor = Predictor(Path(path), device=device, batch_size=batch_size, num_workers=num_workers)
        members = self.predictor.members
        chosen = [choose_method(classifier_of(member), method) for member in members]
        # One method for all, or the mean of their maps would be of nothing in particular.
        self.method: Method = "eigencam" if "eigencam" in chosen else chosen[0]
        self._networks = tuple(
            _Network(member, weight, name, _layers_of(classifier_of(member), self.method))
            for member, (name, weight) in zip(members, _shares(self.predictor), strict=True)
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes that can be explained, in the order of the probabilities."""
        return self.predictor.class_names

    @property
    def layers(self) -> tuple[str, ...]:
        """The layer of each network whose map is shown."""
        return tuple(network.layer for network in self._networks)

    @property
    def member_names(self) -> tuple[str, ...]:
        """Of the networks of an ensemble; none where there is one network only."""
        return tuple(network.name for network in self._networks) if len(self._networks) > 1 else ()

    @property
    def is_of_a_class(self) -> bool:
        """Whether the maps depend on the class that is explained."""
        return self.method in CLASS_METHODS

    def class_number(self, name: str) -> int:
        """The number of a class.

        Raises:
            ConfigError: there is no such class; with the nearest names.
        """
        if name in self.class_names:
            return self.class_names.index(name)
        near = difflib.get_close_matches(name, self.class_names, n=3, cutoff=0.5)
        raise ConfigError(
            f"There is no class {name!r}." + (f" Near: {', '.join(near)}." if near else ""),
            fix=f"give one of the {len(self.class_names)} classes of the model, as it is written: "
            + ", ".join(self.class_names[:12])
            + (", ..." if len(self.class_names) > 12 else ""),
        )

    def __call__(
        self, images: ImageInput | Sequence[ImageInput], *, class_name: str | None = None
    ) -> Explanation | list[Explanation]:
        """Explain one image, or a list of them in order.

        Args:
            images: as for `Predictor`.
            class_name: which class to explain; the predicted one of each image, if None.

        Raises:
            ConfigError: there is no such class.
        """
        if isinstance(images, (str, PathLike, bytes, Image.Image, np.ndarray)):
            return next(self.stream([images], class_name=class_name))
        return list(self.stream(images, class_name=class_name))

    def stream(self, images: Iterable[ImageInput], *, class_name: str | None = None) -> Iterator[Explanation]:
        """Explain any number of images in order, with memory that does not grow; a bad one fails alone.

        Raises:
            ConfigError: there is no such class.
        """
        wanted = None if class_name is None else self.class_number(class_name)
        upcoming = iter(images)
        with ThreadPoolExecutor(self.predictor.num_workers, thread_name_prefix="decode") as pool:
            while batch := list(islice(upcoming, self.predictor.batch_size)):
                yield from self._explained(
                    [name_of(image) for image in batch], list(pool.map(self._opened, batch)), wanted
                )

    def maps(self, seen: Sequence[Seen], classes: Sequence[int]) -> list[NDArray[np.float32]]:
        """Each network's raw maps of prepared images: float32 [n, h, w] a network.

        Args:
            seen: of each image what `predictor.prepare` gave.
            classes: number of the class to explain in each.
        """
        return [network.maps(seen, classes, self.method) for network in self._networks]

    def maps_with(
        self, classifiers: Sequence[Classifier], seen: Sequence[Seen], classes: Sequence[int]
    ) -> list[NDArray[np.float32]]:
        """What `maps` would give if the networks had other weights, at the same layers.

        Args:
            classifiers: one in the place of each network's own, of the same architecture.
            seen: as for `maps`.
            classes: as for `maps`.
        """
        return [
            network.with_classifier(each).maps(seen, classes, self.method)
            for network, each in zip(self._networks, classifiers, strict=True)
        ]

    def _opened(self, image: ImageInput) -> "_Opened | str":
        try:
            policies = {policy for _, policy in self.predictor.looks}
            policy: PixelPolicy = self.predictor.looks[0][1]
            pixels = pixels_of(image, policy)
            # Pixels that are upright and sRGB already go through the policy as they are.
            seen = self.predictor.prepare(pixels if len(policies) == 1 else image)
        except (ImageRejectedError, OSError) as error:
            return reason_of(error)
        return _Opened((pixels.shape[0], pixels.shape[1]), _reduced(pixels), seen)

    def _explained(
        self, names: Sequence[str], opened: "Sequence[_Opened | str]", wanted: int | None
    ) -> Iterator[Explanation]:
        good = [each for each in opened if not isinstance(each, str)]
        seen = [each.seen for each in good]
        probabilities = self.predictor.probabilities(seen) if good else np.empty((0, len(self.class_names)))
        classes = [int(row.argmax()) if wanted is None else wanted for row in probabilities]
        by_network = self.maps(seen, classes) if good else []
        number = 0
        for name, each in zip(names, opened, strict=True):
            if isinstance(each, str):
                nothing = np.full(len(self.class_names), np.nan)
                failed = Prediction(name, "failed", each, "", float("nan"), nothing)
                yield Explanation(failed, "", self.method, (0, 0), np.zeros((0, 0, 3), np.uint8), ())
                continue
            row = probabilities[number]
            top = int(row.argmax())
            members = tuple(
                network.map_of(raw[number], each.size, is_of_a_class=self.is_of_a_class)
                for network, raw in zip(self._networks, by_network, strict=True)
            )
            yield Explanation(
                Prediction(name, "ok", "", self.class_names[top], float(row[top]), row),
                self.class_names[classes[number]],
                self.method,
                each.size,
                each.picture,
                members,
            )
            number += 1


@dataclass(frozen=True, eq=False)
class _Opened:
    """An image that was decoded: its upright size, a copy to draw on, and what each network sees."""

    size: tuple[int, int]
    picture: NDArray[np.uint8]
    seen: Seen


@dataclass(frozen=True, eq=False)
class _Network:
    """One network of an explainer, with its layers."""

    member: Member
    weight: float
    name: str
    targets: tuple[TargetLayer, ...]

    @property
    def layer(self) -> str:
        return " + ".join(target.name for target in self.targets) if self.targets else "attention"

    def maps(self, seen: Sequence[Seen], classes: Sequence[int], method: Method) -> NDArray[np.float32]:
        squares = np.stack([each[self.member.look][0] for each in seen])
        classifier = classifier_of(self.member)
        pixels = to_unit(torch.from_numpy(squares).permute(0, 3, 1, 2), classifier.mean.device)
        return raw_maps(classifier, self.targets, pixels, classes, method)

    def map_of(self, raw: NDArray[np.float32], size: tuple[int, int], *, is_of_a_class: bool) -> MemberMap:
        placement = placement_of(*size, self.member.geometry)
        return MemberMap(self.name, self.weight, self.layer, raw, placement, is_of_a_class)

    def with_classifier(self, classifier: Classifier) -> "_Network":
        layers = tuple(
            TargetLayer(target.name, classifier.net.get_submodule(target.name), target.layout, target.side)
            for target in self.targets
        )
        own = self.member
        return _Network(Member(own.bundle, classifier, own.geometry, own.policy), self.weight, self.name, layers)


def classifier_of(member: Member) -> Classifier:
    """A member's network, which every bundle builds as a `Classifier`."""
    return cast(Classifier, member.classifier)


def _layers_of(classifier: Classifier, method: Method) -> tuple[TargetLayer, ...]:
    return () if method == "rollout" else target_layers(classifier)


def _shares(predictor: Predictor) -> list[tuple[str, float]]:
    """Name and weight of each network in the map of them all."""
    bundle = predictor.bundle
    if isinstance(bundle, Bundle):
        return [("", 1.0)]
    members = bundle.spec.members
    if bundle.spec.vote != "weighted":
        return [(member.name, 1.0 / len(members)) for member in members]
    return [(member.name, member.weight) for member in members]


def _reduced(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if max(pixels.shape[:2]) <= PICTURE_PX:
        return pixels
    picture = Image.fromarray(pixels)
    picture.thumbnail((PICTURE_PX, PICTURE_PX), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return np.asarray(picture)

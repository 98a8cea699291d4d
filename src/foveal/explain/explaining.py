"""Explaining the answers of a run or bundle: the map of each network of it, laid over the picture a person sees."""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from os import PathLike, fspath
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from foveal.errors import ConfigError
from foveal.explain.layers import TargetLayer, target_layers
from foveal.explain.methods import CLASS_METHODS, Method, choose_method, raw_maps
from foveal.explain.placement import Bounds, Placement, centre_of_cell, place, placement_of
from foveal.inference import Member, Predictor, to_unit
from foveal.model.build import Classifier
from foveal.model.bundle import Bundle
from foveal.pixels.policy import ImageRejectedError, PixelPolicy
from foveal.prediction import ImageInput, Prediction, Seen, pixels_of

PICTURE_PX = 1024
"""Longer side of the copy of a picture that an explanation keeps, and of the overlays and maps that are written."""


@dataclass(frozen=True, eq=False)
class MemberMap:
    """What one network looked at.

    Attributes:
        name: of the network within its ensemble; empty where there is one only.
        weight: its share in the map of them all; these add up to 1.
        layer: whose map it is; of a joint network, the layers of its backbones with a plus between them; "attention"
            for rollout.
        raw: float32 [h, w], over the square that the network saw, as the method gave it; see `raw_maps`.
        placement: where the square lies on the picture.
        is_of_a_class: whether what is negative speaks against a class, rather than being no more than less.
    """

    name: str
    weight: float
    layer: str
    raw: NDArray[np.float32]
    placement: Placement
    is_of_a_class: bool = True

    @property
    def heat(self) -> NDArray[np.float32]:
        """The map as it is shown, float32 [h, w], 0..1.

        What speaks against the class is 0, and the largest value is 1; a map of no class goes from its smallest value
        to its largest. All 0 where nothing speaks for the class.
        """
        low = 0.0 if self.is_of_a_class else float(self.raw.min())
        above = np.maximum(self.raw - low, 0.0)
        largest = float(above.max())
        return np.asarray(above / largest if largest > 0 else above, dtype=np.float32)

    def placed(self, size: tuple[int, int], drawn: tuple[int, int]) -> NDArray[np.float32]:
        """`heat` laid over the picture, see `foveal.explain.placement.place`."""
        return place(self.heat, self.placement, size, drawn)


@dataclass(frozen=True, eq=False)
class Explanation:
    """What the classifier says of one image, and where it looked; or why there is nothing.

    Attributes:
        prediction: as `Predictor` gives it; status and reason are here too where an image failed.
        explained: the class whose map this is: the predicted one unless another was asked for. Empty where it failed.
        method: how the map was made: gradcam, gradcam++, hirescam, eigencam or rollout.
        size: height and width of the upright picture, in pixels.
        picture: uint8 [h, w, 3], the upright picture, with its longer side at most `PICTURE_PX`.
        members: the map of each network; one where the classifier is no ensemble.
    """

    prediction: Prediction
    explained: str
    method: Method
    size: tuple[int, int]
    picture: NDArray[np.uint8]
    members: tuple[MemberMap, ...]

    @property
    def is_ok(self) -> bool:
        """Whether there is a map."""
        return bool(self.members)

    @property
    def layer(self) -> str:
        """Whose map it is; the layers of several networks with a comma between them, each named once."""
        return ", ".join(dict.fromkeys(member.layer for member in self.members))

    @cached_property
    def map(self) -> NDArray[np.float32]:
        """float32 [h, w], 0..1, over the upright original in its own size; 0 where the network saw nothing of it."""
        return self.at(self.size)

    @cached_property
    def small_map(self) -> NDArray[np.float32]:
        """float32 [h, w], 0..1, over `picture`."""
        height, width = self.picture.shape[:2]
        return self.at((height, width))

    def at(self, drawn: tuple[int, int]) -> NDArray[np.float32]:
        """The map over the upright picture in another size: the mean of the members' maps by their weights.

        Args:
            drawn: height and width, in pixels.

        Returns:
            float32 [height, width], 0..1.
        """
        mixed = np.zeros(drawn, dtype=np.float32)
        for member in self.members:
            mixed += np.float32(member.weight) * member.placed(self.size, drawn)
        return np.clip(mixed, 0.0, 1.0)

    @property
    def seen(self) -> Bounds:
        """Left, top, right and bottom of what any of the networks saw, in pixels of the upright picture."""
        parts = [member.placement.picture for member in self.members]
        # All are cut from the middle, so the largest holds the others.
        return max(parts, key=lambda part: (part[2] - part[0]) * (part[3] - part[1]))

    @property
    def says_something(self) -> bool:
        """Whether any place speaks for the class, by this method."""
        return any(bool(member.heat.any()) for member in self.members)

    @property
    def peak(self) -> tuple[float, float] | None:
        """Where the heat is greatest: x and y in pixels of the upright picture; None without heat."""
        if not self.says_something:
            return None
        if len(self.members) == 1:
            member = self.members[0]
            row, column = np.unravel_index(int(member.heat.argmax()), member.heat.shape)
            cells = (member.heat.shape[0], member.heat.shape[1])
            return centre_of_cell((int(row), int(column)), cells, member.placement, self.size)
        row, column = np.unravel_index(int(self.small_map.argmax()), self.small_map.shape)
        scale_y, scale_x = (whole / part for whole, part in zip(self.size, self.small_map.shape, strict=True))
        return (float(column) + 0.5) * scale_x, (float(row) + 0.5) * scale_y

    def share_inside(self, boxes: Sequence[tuple[float, float, float, float]]) -> float | None:
        """The share of the heat that lies in any of the boxes; None where there is no heat.

        Args:
            boxes: xmin, ymin, xmax and ymax in pixels of the upright picture, the latter two exclusive.
        """
        heat = self.small_map
        total = float(heat.sum())
        if not total:
            return None
        scale_y, scale_x = (part / whole for part, whole in zip(heat.shape, self.size, strict=True))
        y = (np.arange(heat.shape[0]) + 0.5) / scale_y
        x = (np.arange(heat.shape[1]) + 0.5) / scale_x
        inside = np.zeros(heat.shape, dtype=bool)
        for xmin, ymin, xmax, ymax in boxes:
            inside |= ((y >= ymin) & (y < ymax))[:, None] & ((x >= xmin) & (x < xmax))[None, :]
        return float(heat[inside].sum()) / total


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
                    [_name(image) for image in batch], list(pool.map(self._opened, batch)), wanted
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
        except ImageRejectedError as error:
            return str(error)
        except FileNotFoundError:
            return "no such file"
        except OSError as error:
            return f"cannot be read: {error.strerror or error}"
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


def _name(image: ImageInput) -> str:
    return fspath(image) if isinstance(image, (str, PathLike)) else ""

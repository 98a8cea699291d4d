"""What an explanation holds: the answer, the map of each network, and where both lie on the picture a person sees."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from foveal.explaining.methods import Method
from foveal.explaining.placement import Bounds, Placement, centre_of_cell, place
from foveal.prediction import Prediction

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
        """`heat` laid over the picture, see `foveal.explaining.placement.place`."""
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

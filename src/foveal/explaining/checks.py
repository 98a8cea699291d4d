"""Do the heatmaps depend on what the network has learnt? The randomisation test of Adebayo et al.

"Sanity Checks for Saliency Maps" (NeurIPS 2018): a map that stays the same when all weights are drawn anew, as that of
an edge detector does, shows the picture and not the network. Here each image's map is compared with the maps of
networks of the same architecture with random weights, at the same layer and for the same class, by Spearman's rank
correlation over the places of the map as it is shown.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from foveal.errors import ConfigError
from foveal.explaining.explainer import Explainer, classifier_of
from foveal.explaining.methods import METHOD_NAMES
from foveal.extras import require
from foveal.model.build import Classifier, build
from foveal.prediction import Seen

NUM_IMAGES = 6
"""Images that are compared, the first of those that are explained."""
NUM_DRAWS = 3
"""Networks with random weights."""
ALIKE = 0.5
"""From this mean rank correlation on, the maps hardly change."""

Maps = Callable[[Sequence[Classifier], Sequence[Seen], Sequence[int]], list[NDArray[np.float32]]]
"""From networks, prepared images and the class to explain in each to each network's raw maps, float32 [n, h, w]."""


@dataclass(frozen=True)
class SanityCheck:
    """How alike maps are with learnt and with random weights.

    Attributes:
        method: how the maps were made.
        rank_correlation: mean of Spearman's over images, networks and draws; 1 is the same order of places.
        largest: of the means over images, one a draw.
        num_images: that were compared.
        num_draws: networks with random weights that each was compared with.
    """

    method: str
    rank_correlation: float
    largest: float
    num_images: int
    num_draws: int

    @property
    def passes(self) -> bool:
        """Whether the maps change."""
        return self.rank_correlation < ALIKE

    @property
    def sentence(self) -> str:
        """What came of it, for people."""
        images = f"{self.num_images} image{'s' if self.num_images != 1 else ''}"
        figures = (
            f"mean rank correlation {self.rank_correlation:.2f} over {images} and {self.num_draws} random networks"
        )
        name = METHOD_NAMES.get(self.method, self.method)
        if self.passes:
            return f"The maps change when the weights are drawn at random: {figures}."
        return (
            f"WARNING: the maps of {name} hardly change when the weights are drawn at random ({figures}): they show "
            "what stands out in the picture rather than what the network has learnt. They explain nothing."
        )


def check_maps(
    explainer: Explainer, seen: Sequence[Seen], classes: Sequence[int], *, seed: int = 0, maps: Maps | None = None
) -> SanityCheck:
    """Compare the maps of learnt weights with those of random ones.

    Args:
        explainer: with the learnt weights.
        seen: of each image what `explainer.predictor.prepare` gave.
        classes: number of the class to explain in each.
        seed: of the random weights.
        maps: another way to make maps than the explainer's own, to be put to the same test.

    Raises:
        ConfigError: there is no image.
    """
    if not seen:
        raise ConfigError("The check of heatmaps needs at least one image.", fix="give images that can be read.")
    maps = maps or explainer.maps_with
    members = [classifier_of(member) for member in explainer.predictor.members]
    learnt, by_draw = maps(members, seen, classes), []
    for draw in range(NUM_DRAWS):
        found = [
            rank_correlation(_shown(one, explainer), _shown(other, explainer))
            for own, others in zip(learnt, maps(_drawn(members, seed + draw), seen, classes), strict=True)
            for one, other in zip(own, others, strict=True)
        ]
        by_draw.append(float(np.mean(found)))
    return SanityCheck(explainer.method, float(np.mean(by_draw)), max(by_draw), len(seen), NUM_DRAWS)


def rank_correlation(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Spearman's over all places; 0 where one of the maps is the same everywhere, which is like no other.

    Args:
        one: float32 [h, w].
        other: float32 [h, w].
    """
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    stats = require("scipy.stats", extra="train", purpose="compare heatmaps")
    return float(stats.spearmanr(one.ravel(), other.ravel()).statistic)


def _drawn(members: Sequence[Classifier], seed: int) -> list[Classifier]:
    """Networks of the same architectures with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return [build(each.architecture).eval().to(each.mean.device) for each in members]


def _shown(raw: NDArray[np.float32], explainer: Explainer) -> NDArray[np.float32]:
    """The map as it is shown: without what speaks against the class."""
    return np.maximum(raw, 0.0) if explainer.is_of_a_class else raw

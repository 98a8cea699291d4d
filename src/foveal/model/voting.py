"""How several classifiers come to one answer."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Vote = Literal["soft", "majority", "weighted"]


def voted(probabilities: NDArray[np.float64], vote: Vote, weights: Sequence[float]) -> NDArray[np.float64]:
    """The probabilities that an ensemble gives.

    Args:
        probabilities: float64 [members, n, classes], each member's own, calibrated; rows add up to 1.
        vote: soft and weighted: their mean, equal or by `weights`; majority: each member's most probable class has its
            vote, and the mean of the probabilities counts as one vote more, shared: it decides between classes with
            as many votes, and leaves no class without any probability.
        weights: a share for each member, adding up to 1; only weighted takes it.

    Returns:
        float64 [n, classes], rows add up to 1.
    """
    num_members, _, num_classes = probabilities.shape
    mean: NDArray[np.float64] = probabilities.mean(axis=0)
    if vote == "soft":
        return mean
    if vote == "weighted":
        return np.tensordot(np.asarray(weights, dtype=np.float64), probabilities, axes=1)
    votes = np.eye(num_classes)[probabilities.argmax(axis=2)].sum(axis=0)
    return np.asarray((votes + mean) / (num_members + 1))

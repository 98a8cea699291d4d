"""How several classifiers come to one answer."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Vote = Literal["soft", "majority", "weighted"]

LEAST_PROBABILITY = 1e-30
"""Below it a probability has no logarithm to go on with; the same in torch, in numpy and in exported graphs."""


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


def logits_of(probabilities: NDArray[np.float64], temperature: float = 1.0) -> NDArray[np.float64]:
    """Logits that, divided by the temperature, give probabilities again by their softmax.

    Args:
        probabilities: float64 [..., classes], such as a vote's; the last axis adds up to 1.
        temperature: above 0.

    Returns:
        float64 [..., classes].
    """
    return np.asarray(np.log(np.maximum(probabilities, LEAST_PROBABILITY)) * temperature)

"""Weights of a weighted vote, fitted on validation by greedy selection."""

import numpy as np
from numpy.typing import NDArray

from foveal.metrics.inputs import checked_groups
from foveal.metrics.intervals import resample_counts

NUM_BAGS = 20
NUM_ROUNDS = 50
SMALLEST_WEIGHT = 0.02
"""A member with less is left out: it would cost its whole time, and hardly be heard."""
_LEAST = 1e-15

Floats = NDArray[np.float64]


def greedy_weights(
    probabilities: Floats,
    labels: NDArray[np.int64],
    *,
    groups: NDArray[np.int64] | None = None,
    seed: int = 0,
    num_bags: int = NUM_BAGS,
) -> Floats:
    """How much each member of an ensemble counts, by what they say of validation images.

    Forward selection with replacement (Caruana, Niculescu-Mizil, Crew and Ksikes, "Ensemble selection from libraries of
    models", 2004): one starts with the best members, and adds again and again the one that lowers the log loss of the
    mean of the probabilities the most; how often a member was taken is its weight. Against over-fitting to few
    validation images, as the authors advise, the start is sorted (the best of the leading subsets of the members
    ordered by their own loss), and the whole is done on `num_bags` bootstrap resamples of the images, whose weights are
    averaged. Of several resamples no single image decides.

    The temperature of the vote is fitted afterwards, and has no part in this: were it free here, a member that knows
    nothing would be taken as a means to smooth the others.

    Args:
        probabilities: float64 [members, n, classes], each member's own, calibrated; of validation images.
        labels: int64 [n], the true classes.
        groups: int64 [n], images that are drawn together; None to draw each by itself.
        seed: of the resamples.
        num_bags: how many resamples; 0 takes the images once, as they are.

    Returns:
        float64 [members], adding up to 1; 0 for members that are not worth their time.
    """
    of_truth = np.maximum(probabilities[:, np.arange(len(labels)), labels], _LEAST)
    clusters = checked_groups(groups, len(labels))
    if clusters is not None and int(clusters.max()) == 0:
        clusters = None
    bags: list[Floats] = [np.ones(len(labels))]
    if num_bags:
        chunks = list(resample_counts(labels, clusters, num_bags, seed))
        bags = list(np.concatenate(chunks, axis=1).T.astype(np.float64))
    weights = np.mean([_selected(of_truth, counts) for counts in bags], axis=0)
    weights[weights < SMALLEST_WEIGHT] = 0.0
    if not weights.any():  # so many members that each is hardly heard
        weights = np.ones(len(weights))
    shares: Floats = weights / weights.sum()
    return shares


def _selected(of_truth: Floats, counts: Floats) -> Floats:
    """Greedy forward selection on one resample.

    Args:
        of_truth: float64 [members, n], each member's probability of the true class.
        counts: float64 [n], how often each image is in the resample.

    Returns:
        float64 [members], shares.
    """
    kept = counts > 0
    of_truth, counts = of_truth[:, kept], counts[kept]

    def losses(mixed: Floats) -> Floats:
        """Of each mixture, float64 [..., n], the sum over the images."""
        return np.asarray(-(np.log(mixed) @ counts))

    order = np.argsort(losses(of_truth), kind="stable")
    leading = np.cumsum(of_truth[order], axis=0) / np.arange(1, len(order) + 1)[:, None]
    size = int(losses(leading).argmin()) + 1
    taken = np.zeros(len(order))
    taken[order[:size]] = 1.0
    total, best = of_truth[order[:size]].sum(axis=0), taken.copy()
    least = float(losses(total / size))
    for number in range(size + 1, NUM_ROUNDS + size + 1):
        tried = losses((total[None] + of_truth) / number)
        chosen = int(tried.argmin())
        taken[chosen] += 1.0
        total = total + of_truth[chosen]
        if tried[chosen] < least:
            least, best = float(tried[chosen]), taken.copy()
    return np.asarray(best / best.sum())

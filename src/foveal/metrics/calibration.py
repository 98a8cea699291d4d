"""How far a probability can be taken at its word: top-k, proper scores, calibration error, and temperature."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foveal.errors import DataError
from foveal.metrics.inputs import Floats, Ints, checked_pair

NUM_ECE_BINS = 15
TEMPERATURE_BOUNDS = (0.05, 20.0)
_NEWTON_STEPS = 100
_CONVERGED = 1e-10
_BLOCK_ELEMENTS = 250_000  # of float64, which stay in the cache through the passes over them
_EPS = float(np.finfo(np.float64).eps)


class ReliabilityBins(NamedTuple):
    """A reliability diagram in numbers.

    Attributes:
        edges: float64 [bins + 1], equal steps from 0 to 1. Bin m holds the images whose largest probability lies in
            (edges[m], edges[m + 1]]: the upper edge belongs to the bin, the lower to the one below.
        num_images: int64 [bins], how many fell in the bin.
        mean_probability: float64 [bins], the mean largest probability in the bin; NaN where it is empty.
        accuracy: float64 [bins], the share of right predictions in the bin; NaN where it is empty.
    """

    edges: Floats
    num_images: Ints
    mean_probability: Floats
    accuracy: Floats


def softmax(logits: ArrayLike, temperature: float = 1.0) -> Floats:
    """Probabilities from logits divided by a temperature, stable for any finite logits.

    Args:
        logits: float [..., C], finite.
        temperature: above 0; larger is less sure.

    Returns:
        float64 [..., C]; the last axis sums to 1.

    Raises:
        DataError: a temperature that is not a finite number above 0.
    """
    if not (np.isfinite(temperature) and temperature > 0):
        raise DataError(f"Expected a temperature above 0, got {temperature}.")
    scaled = np.asarray(logits, dtype=np.float64)
    scaled = (scaled - scaled.max(axis=-1, keepdims=True)) / temperature
    exponentials = np.exp(scaled)
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def top_k_hits(labels: Ints, probabilities: Floats, k: int) -> NDArray[np.bool_]:
    """Whether the true class is among the k most probable ones: bool [n].

    Ties go to the class with the lower index, as in `argmax`, so that k = 1 is exactly "predicted right".
    """
    of_truth = probabilities[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(probabilities.shape[1]) < labels[:, None]
    rank = (probabilities > of_truth).sum(axis=1) + ((probabilities == of_truth) & earlier).sum(axis=1)
    return np.asarray(rank < k)


def top_k_accuracy(labels: ArrayLike, probabilities: ArrayLike, k: int) -> float:
    """The share of images whose true class is among the k most probable; NaN where k covers all classes.

    Args:
        labels: int [n], in 0..C-1.
        probabilities: float [n, C], rows sum to 1.
        k: at least 1.
    """
    true, rows = checked_pair(labels, probabilities)
    return float(top_k_hits(true, rows, k).mean()) if k < rows.shape[1] else float("nan")


def log_loss_terms(labels: Ints, probabilities: Floats) -> Floats:
    """The negative log-probability of each image's true class, in nats: float64 [n].

    Clipped at the machine epsilon of float64 on either side, as scikit-learn does, so that one certain and wrong answer
    costs 36.04 and not infinity.
    """
    of_truth = probabilities[np.arange(len(labels)), labels]
    return np.asarray(-np.log(np.clip(of_truth, _EPS, 1 - _EPS)))


def log_loss(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """The mean of `log_loss_terms`.

    Args:
        labels: int [n], in 0..C-1.
        probabilities: float [n, C], rows sum to 1.
    """
    return float(log_loss_terms(*checked_pair(labels, probabilities)).mean())


def brier_terms(labels: Ints, probabilities: Floats) -> Floats:
    """The squared distance between each row and its one-hot truth: float64 [n].

    As scikit-learn's `brier_score_loss(scale_by_half="auto")`: with two classes it is halved (0..1, the usual binary
    Brier score), with more it is not (0..2, Brier, 1950).
    """
    of_truth = probabilities[np.arange(len(labels)), labels]
    terms = (probabilities**2).sum(axis=1) - of_truth**2 + (1 - of_truth) ** 2
    return np.asarray(terms / 2 if probabilities.shape[1] < 3 else terms)


def brier(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """The mean of `brier_terms`.

    Args:
        labels: int [n], in 0..C-1.
        probabilities: float [n, C], rows sum to 1.
    """
    return float(brier_terms(*checked_pair(labels, probabilities)).mean())


def top_probability_bins(probabilities: Floats, num_bins: int = NUM_ECE_BINS) -> tuple[Ints, Floats]:
    """The bin of each image's largest probability, int64 [n], and the edges of the bins; see `ReliabilityBins`."""
    edges = np.linspace(0, 1, num_bins + 1)
    index = np.searchsorted(edges, probabilities.max(axis=1), side="left") - 1
    return np.clip(index, 0, num_bins - 1).astype(np.int64), edges


def reliability_bins(labels: ArrayLike, probabilities: ArrayLike, num_bins: int = NUM_ECE_BINS) -> ReliabilityBins:
    """Claimed against observed accuracy, in bins of equal width over the largest probability.

    Args:
        labels: int [n], in 0..C-1.
        probabilities: float [n, C], rows sum to 1.
        num_bins: how many bins.
    """
    true, rows = checked_pair(labels, probabilities)
    index, edges = top_probability_bins(rows, num_bins)
    count = np.bincount(index, minlength=num_bins)
    claimed = np.bincount(index, weights=rows.max(axis=1), minlength=num_bins)
    right = np.bincount(index, weights=rows.argmax(axis=1) == true, minlength=num_bins)
    blank = np.full(num_bins, np.nan)
    return ReliabilityBins(
        edges,
        count,
        np.divide(claimed, count, out=blank.copy(), where=count > 0),
        np.divide(right, count, out=blank.copy(), where=count > 0),
    )


def ece(labels: ArrayLike, probabilities: ArrayLike, num_bins: int = NUM_ECE_BINS) -> float:
    """Expected calibration error: the mean gap between claimed and observed accuracy, weighted by the bins' images.

    Source: Guo et al., "On Calibration of Modern Neural Networks", 2017, equation 3, with its 15 bins of equal width;
    `ReliabilityBins` says which edge belongs where.

    Args:
        labels: int [n], in 0..C-1.
        probabilities: float [n, C], rows sum to 1.
        num_bins: how many bins.
    """
    bins = reliability_bins(labels, probabilities, num_bins)
    used = bins.num_images > 0
    gaps = np.abs(bins.accuracy[used] - bins.mean_probability[used])
    return float((gaps * bins.num_images[used]).sum() / bins.num_images.sum())


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """The temperature at which the logits explain the labels best (least log loss), between 0.05 and 20.

    The loss is convex in 1/T, so its slope has one root; Newton's method finds it, with bisection where a step would
    leave the bracket. Source: Guo et al., 2017, section 4.2.

    Where the images cannot tell, the answer is 1, which changes nothing: when every image is right the best temperature
    would be 0, that is certainty, which no finite number of images supports; and when all logits of a row are equal,
    every temperature is as good. An optimum beyond a bound gives the bound.

    Args:
        logits: float [n, C], finite, of images that the model was not trained on.
        labels: int [n], in 0..C-1.

    Returns:
        The temperature to divide logits by.

    Raises:
        DataError: empty or malformed input.
    """
    true, rows = checked_pair(labels, logits, rows_are="logits")
    rows = rows - rows.max(axis=1, keepdims=True)
    of_truth = rows[np.arange(len(true)), true]
    if (of_truth == 0).all():
        return 1.0  # every image is right (or ties for it): see above
    lowest, highest = (float(np.log(1 / bound)) for bound in reversed(TEMPERATURE_BOUNDS))
    if _loss_slope(rows, of_truth, highest)[0] <= 0:
        return TEMPERATURE_BOUNDS[0]
    if _loss_slope(rows, of_truth, lowest)[0] >= 0:
        return TEMPERATURE_BOUNDS[1]
    at = 0.0
    for _ in range(_NEWTON_STEPS):
        slope, curvature = _loss_slope(rows, of_truth, at)
        lowest, highest = (lowest, at) if slope > 0 else (at, highest)
        newton = at - slope / curvature if curvature > 0 else np.inf
        if abs(newton - at) < _CONVERGED:
            break
        at = newton if lowest < newton < highest else (lowest + highest) / 2
    return float(np.exp(-at))


def _loss_slope(rows: Floats, of_truth: Floats, log_inverse: float) -> tuple[float, float]:
    """First and second derivative of the mean log loss by u, where 1/T = exp(u)."""
    inverse = float(np.exp(log_inverse))
    block = max(1, _BLOCK_ELEMENTS // rows.shape[1])
    gap = variance = 0.0
    for at in range(0, len(rows), block):
        logits = rows[at : at + block]
        weights = np.exp(logits * inverse)  # never overflows: the largest logit of each row is 0
        total = weights.sum(axis=1)
        weights *= logits
        mean = weights.sum(axis=1) / total
        gap += float((mean - of_truth[at : at + block]).sum())
        variance += float((np.einsum("nc,nc->n", weights, logits) / total - mean**2).sum())
    slope = gap / len(rows) * inverse
    return slope, slope + variance / len(rows) * inverse**2

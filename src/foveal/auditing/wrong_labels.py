"""Labels that are probably wrong: confident learning on what models say of images that they did not train on."""

import io
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foveal.extras import require

_MIN_WRONG = 0.5
_MAX_ENTRIES = 400_000
_ROUNDS = 100
_LARGEST_NOISE = 0.5

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Suspect:
    """A label that is probably wrong.

    Attributes:
        place: its place in the arrays that were given.
        given_probability: what the models gave to the label that it has, 0..1.
        suggested: the class that they gave most to.
        suggested_probability: and how much, 0..1.
    """

    place: int
    given_probability: float
    suggested: int
    suggested_probability: float


@dataclass(frozen=True, slots=True)
class Noise:
    """How labels come about, as `fit_noise` estimates it.

    Attributes:
        share: of labels that were drawn at random from all classes instead of from what the picture shows, 0..0.5.
        temperature: what the logits are divided by to be honest about the others.
    """

    share: float
    temperature: float


def wrong_labels(labels: NDArray[np.int64], logits: Floats) -> list[Suspect]:
    """Find labels that out-of-fold logits speak against, the most certain first.

    Confident learning estimates how often each class stands for each other in the labels, and points at that many
    images. Where models cannot tell the classes apart well it points at the hard images too, so a label must also be
    more probably wrong than right by `fit_noise`: it is far less probable than the models' own doubts explain.

    Source: C. Northcutt, L. Jiang, I. Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 70,
    2021; as implemented in cleanlab.

    Args:
        labels: int64 [n], class numbers; every class from 0 on occurs.
        logits: float64 [n, classes], finite, of models that saw neither the image nor a copy of it.

    Raises:
        MissingExtraError: cleanlab is not installed.
    """
    cleanlab = require("cleanlab.filter", extra="labels", purpose="find labels that are probably wrong")
    noise = fit_noise(labels, logits)
    probabilities = _softmax(logits / noise.temperature)
    # It prints and warns about its own settings, which nobody can change here.
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        suspected = cleanlab.find_label_issues(labels, probabilities, filter_by="prune_by_noise_rate", n_jobs=1)
    given = probabilities[np.arange(len(labels)), labels]
    top = probabilities.argmax(axis=1)
    wrong = _wrong_share(given, noise.share, logits.shape[1])
    places = np.flatnonzero(suspected & (top != labels) & (wrong > _MIN_WRONG))
    order = places[np.lexsort((places, given[places]))].tolist()
    return [Suspect(at, float(given[at]), int(top[at]), float(probabilities[at, top[at]])) for at in order]


def fit_noise(labels: NDArray[np.int64], logits: Floats, *, seed: int = 0) -> Noise:
    """Tell how many labels are wrong from how sure the models rightly are, both at once.

    A label is taken to be drawn from the models' probabilities at some temperature, or, with a small share, from all
    classes alike; the two numbers that make the labels most likely are found by expectation and maximisation. The share
    is what no temperature explains: labels that the models all but exclude, more often than models that sure would err.

    Source: A. Dempster, N. Laird, D. Rubin, "Maximum Likelihood from Incomplete Data via the EM Algorithm", JRSS B 39,
    1977; the temperature as in C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.

    Args:
        labels: int64 [n], class numbers.
        logits: float64 [n, classes], finite.
        seed: decides which rows are looked at where there are very many.
    """
    num_classes = logits.shape[1]
    most = max(1, _MAX_ENTRIES // num_classes)
    if len(labels) > most:
        drawn = np.random.default_rng(seed).choice(len(labels), most, replace=False)
        labels, logits = labels[drawn], logits[drawn]
    rows, sharpness, share = np.arange(len(labels)), 1.0, 0.02
    of_label = logits[rows, labels]
    for _ in range(_ROUNDS):
        probabilities = _softmax(logits * sharpness)
        right = 1.0 - _wrong_share(probabilities[rows, labels], share, num_classes)
        before = (sharpness, share)
        share = float(np.clip((1.0 - right).mean(), 1e-6, _LARGEST_NOISE))
        mean = (probabilities * logits).sum(axis=1)
        variance = (probabilities * logits**2).sum(axis=1) - mean**2
        # A step of Newton's method for the labels that are right, at most a halving or a doubling.
        step = float((right * (of_label - mean)).sum() / max(1e-12, float((right * variance).sum())))
        sharpness = float(np.clip(sharpness + step, max(sharpness / 2, 1e-3), min(sharpness * 2, 1e3)))
        if np.allclose(before, (sharpness, share), rtol=1e-5, atol=1e-9):
            break
    return Noise(share, 1.0 / sharpness)


def _wrong_share(given: Floats, share: float, num_classes: int) -> Floats:
    """The probability that each label was drawn at random and not from what the picture shows, float64 [n]."""
    at_random = share / num_classes
    wrong: Floats = at_random / ((1.0 - share) * given + at_random)
    return wrong


def _softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: Floats = powers / powers.sum(axis=1, keepdims=True)
    return probabilities

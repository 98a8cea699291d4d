"""Classical heads on features: each is fitted over a small grid, and validation chooses.

What is compared is what will be deployed: each candidate is made a torch module first, and that is what is asked.
"""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from foveal.experiments.probe.trees import flattened, trees_of_booster, trees_of_forest
from foveal.extras import require
from foveal.metrics import class_metrics, confusion_matrix, fit_temperature, log_loss, softmax
from foveal.model.classical import NeighbourHead, make_classical
from foveal.model.config import ClassicalHeadConfig

PENALTIES = {"logistic": (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0), "svm": (1e-5, 1e-4, 1e-3, 1e-2)}
"""C of scikit-learn, of features with mean 0 and standard deviation 1."""
NUM_NEIGHBOURS = (1, 3, 5, 10, 20)
LEAF_SIZES = (1, 4)
TREE_DEPTHS = (2, 4)
NUM_TREES = 200
MOST_ROUNDS = 100
PATIENCE_ROUNDS = 10
MOST_REFERENCES = 100_000
"""Images that the nearest are looked for among; more would make a slow bundle of gigabytes."""

_ABSENT_LOGIT = -1e4
_PAIRS_AT_ONCE = 1 << 24
_PURPOSE = "fit the heads of a probe"

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class HeadData:
    """What heads are fitted on, and chosen by.

    Attributes:
        train: float32 [n, features].
        train_labels: int64 [n].
        val: float32 [m, features].
        val_labels: int64 [m].
        num_classes: of the labels, whether they occur or not.
        class_weights: float64 [classes], what an image of each counts; None where all count the same.
        seed: of every draw.
        num_threads: that may compute.
    """

    train: Floats
    train_labels: Ints
    val: Floats
    val_labels: Ints
    num_classes: int
    class_weights: NDArray[np.float64] | None
    seed: int
    num_threads: int

    @property
    def image_weights(self) -> NDArray[np.float64] | None:
        """float64 [n], what each training image counts; None where all count the same."""
        return None if self.class_weights is None else self.class_weights[self.train_labels]


@dataclass(frozen=True)
class Candidate:
    """One point of a grid, fitted.

    Attributes:
        chosen: the hyper-parameters.
        classical: the sizes of a head that is no layer; None for a layer.
        tensors: of the head: `weight` and `bias` of a layer, or what `make_classical` holds.
        notes: what is to be said of the fit.
    """

    chosen: Mapping[str, Any]
    classical: ClassicalHeadConfig | None
    tensors: Mapping[str, torch.Tensor]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tried:
    """What validation says of one point of a grid: macro F1, and log loss with a temperature of its own."""

    chosen: Mapping[str, Any]
    val_macro_f1: float
    val_log_loss: float
    seconds: float


@dataclass(frozen=True)
class FittedHead:
    """The best point of a grid.

    Attributes:
        name: of the head, such as logistic.
        best: what was chosen.
        tried: the whole grid, in order.
        seconds: of the whole grid, the choice included.
    """

    name: str
    best: Candidate
    tried: tuple[Tried, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class HeadKind:
    """A classical model.

    Attributes:
        title: for people.
        candidates: fits each point of the grid in turn.
        needs: the library and the extra that it takes beyond `train`.
    """

    title: str
    candidates: Callable[[HeadData], Iterator[Candidate]]
    needs: tuple[str, str] | None = field(default=None)


def fit_head(name: str, data: HeadData) -> FittedHead:
    """Fit a head over its grid and choose by validation: the higher macro F1, and of equal ones the lower log loss.

    Args:
        name: one of `HEADS`.
        data: at least two classes among the training images.

    Raises:
        MissingExtraError: the head's library is not installed.
    """
    started = time.perf_counter()
    tried: list[Tried] = []
    best: tuple[tuple[float, float], Candidate] | None = None
    candidates = HEADS[name].candidates(data)
    while True:
        begun = time.perf_counter()
        candidate = next(candidates, None)
        if candidate is None:
            break
        logits = head_logits(head_module(candidate, data.train.shape[1], data.num_classes), data.val)
        macro_f1, loss = quality(data.val_labels, logits)
        tried.append(Tried(candidate.chosen, macro_f1, loss, time.perf_counter() - begun))
        if best is None or (macro_f1, -loss) > best[0]:
            best = (macro_f1, -loss), candidate
    if best is None:
        raise ValueError(f"the grid of {name} is empty")
    return FittedHead(name, best[1], tuple(tried), time.perf_counter() - started)


def quality(labels: Ints, logits: Floats) -> tuple[float, float]:
    """Macro F1, and the log loss that is left when the probabilities were calibrated on the same images.

    Args:
        labels: int64 [n].
        logits: float32 [n, classes].
    """
    rows = logits.astype(np.float64)
    f1 = class_metrics(confusion_matrix(labels, rows.argmax(axis=1), rows.shape[1]))["f1"]
    loss = log_loss(labels, softmax(rows, fit_temperature(rows, labels)))
    return float(np.nanmean(f1)), float(loss)


def head_module(candidate: Candidate, num_features: int, num_classes: int) -> nn.Module:
    """The head by itself, as it stands in the bundle."""
    module: nn.Module
    if candidate.classical is None:
        module = nn.Linear(num_features, num_classes)
    else:
        module = make_classical(candidate.classical, num_features, num_classes)
    module.load_state_dict(dict(candidate.tensors))
    return module.eval()


def head_logits(module: nn.Module, features: Floats) -> Floats:
    """What a head says of features, float32 [n, classes].

    Args:
        module: as `head_module` makes it.
        features: float32 [n, features].
    """
    config = getattr(module, "config", None)
    width = 1 if config is None else max(config.num_references, config.num_trees * getattr(module, "num_classes", 1))
    size = max(1, min(1024, _PAIRS_AT_ONCE // width))
    with torch.inference_mode():
        parts = [module(torch.from_numpy(features[at : at + size])).numpy() for at in range(0, len(features), size)]
    return np.concatenate(parts)


def linear_layer(
    weight: NDArray[np.float64],
    bias: NDArray[np.float64],
    classes: Ints,
    mean: NDArray[np.float64],
    scale: NDArray[np.float64],
    num_classes: int,
) -> dict[str, torch.Tensor]:
    """A linear model of standardised features as a layer on the features themselves.

    Args:
        weight: float64 [classes met, features], or [1, features] of the second of two classes.
        bias: float64 [classes met], or [1].
        classes: int64 [classes met].
        mean: float64 [features], what was subtracted.
        scale: float64 [features], what was divided by then.
        num_classes: outputs; those that were not met never win.
    """
    if len(classes) == 2:
        # Half for the one and half against the other gives the same probabilities as all for the one.
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    folded = weight / scale
    full = np.zeros((num_classes, folded.shape[1]))
    offsets = np.full(num_classes, _ABSENT_LOGIT)
    full[classes], offsets[classes] = folded, bias - folded @ mean
    return {"weight": torch.from_numpy(full).float(), "bias": torch.from_numpy(offsets).float()}


def _linear(name: str, data: HeadData) -> Iterator[Candidate]:
    """Logistic regression, or a linear SVM, for each strength of the penalty."""
    linear = require("sklearn.linear_model", extra="train", purpose=_PURPOSE)
    svm = require("sklearn.svm", extra="train", purpose=_PURPOSE)
    exceptions = require("sklearn.exceptions", extra="train", purpose=_PURPOSE)
    mean = data.train.mean(axis=0, dtype=np.float64)
    scale = data.train.std(axis=0, dtype=np.float64)
    scale[scale <= 1e-9 * np.abs(mean) + 1e-30] = 1.0
    rows = (data.train - mean) / scale
    # Each fit of the regression begins where the last one ended.
    model = linear.LogisticRegression(max_iter=300, warm_start=True)
    for penalty in PENALTIES[name]:
        if name == "logistic":
            model.set_params(C=penalty)
        else:
            model = svm.LinearSVC(C=penalty, max_iter=500, tol=1e-3, random_state=data.seed, dual="auto")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.fit(rows, data.train_labels, sample_weight=data.image_weights)
        unfinished = any(issubclass(warning.category, exceptions.ConvergenceWarning) for warning in caught)
        notes = (f"C={penalty:g} had not converged after {model.max_iter:,} iterations",) if unfinished else ()
        layer = linear_layer(model.coef_, model.intercept_, model.classes_, mean, scale, data.num_classes)
        yield Candidate({"C": penalty}, None, layer, notes)


def _logistic(data: HeadData) -> Iterator[Candidate]:
    yield from _linear("logistic", data)


def _svm(data: HeadData) -> Iterator[Candidate]:
    yield from _linear("svm", data)


def _neighbours(data: HeadData) -> Iterator[Candidate]:
    """For each distance the nearest are found once; each number of them and each weighting is tried on those."""
    features, labels = data.train, data.train_labels
    notes: tuple[str, ...] = ()
    if len(labels) > MOST_REFERENCES:
        kept = np.sort(np.random.default_rng(data.seed).permutation(len(labels))[:MOST_REFERENCES])
        features, labels = features[kept], labels[kept]
        notes = (f"{MOST_REFERENCES:,} of the {len(data.train):,} training images were drawn to be kept",)
    counts = sorted({min(number, len(labels)) for number in NUM_NEIGHBOURS})
    for distance in ("cosine", "euclid"):
        sizes = ClassicalHeadConfig(
            kind="neighbours", num_references=len(labels), num_neighbours=counts[-1], distance=distance
        )
        tensors = NeighbourHead.of(
            sizes, torch.from_numpy(features), torch.from_numpy(labels), data.num_classes
        ).state_dict()
        for number, weighting in product(counts, ("equal", "inverse")):
            if number == 1 and weighting == "inverse":
                continue  # one neighbour by itself is all, however much it counts
            config = sizes.model_copy(update={"num_neighbours": number, "weighting": weighting})
            chosen = {"neighbours": number, "distance": distance, "weighting": weighting}
            yield Candidate(chosen, config, tensors, notes)


def _forest(data: HeadData) -> Iterator[Candidate]:
    ensemble = require("sklearn.ensemble", extra="train", purpose=_PURPOSE)
    for leaf_size in LEAF_SIZES:
        model = ensemble.RandomForestClassifier(
            NUM_TREES, min_samples_leaf=leaf_size, n_jobs=data.num_threads, random_state=data.seed
        )
        model.fit(data.train, data.train_labels, sample_weight=data.image_weights)
        trees = trees_of_forest(model, data.num_classes)
        config, tensors = flattened("forest", trees, np.zeros(data.num_classes, dtype=np.float32))
        yield Candidate({"trees": NUM_TREES, "min_samples_leaf": leaf_size}, config, tensors)


def _boosting(data: HeadData) -> Iterator[Candidate]:
    """Boosted trees; validation says as well after how many rounds to stop."""
    xgboost = require("xgboost", extra="boost", purpose="boost trees on features")
    quantiles: dict[str, Any] = {"nthread": data.num_threads, "max_bin": 64}
    train = xgboost.QuantileDMatrix(data.train, label=data.train_labels, weight=data.image_weights, **quantiles)
    val = xgboost.QuantileDMatrix(data.val, label=data.val_labels, ref=train, **quantiles)
    for depth in TREE_DEPTHS:
        settings = {
            "objective": "multi:softprob",
            "num_class": data.num_classes,
            "eval_metric": "mlogloss",
            "tree_method": "hist",
            "max_depth": depth,
            "max_bin": 64,
            "eta": 0.3,
            "subsample": 0.8,
            "colsample_bynode": 0.2,
            "nthread": data.num_threads,
            "seed": data.seed,
            "verbosity": 0,
        }
        booster = xgboost.train(
            settings,
            train,
            MOST_ROUNDS,
            evals=[(val, "val")],
            early_stopping_rounds=PATIENCE_ROUNDS,
            verbose_eval=False,
        )
        rounds = booster.best_iteration + 1
        trees, base = trees_of_booster(booster[:rounds])
        config, tensors = flattened("boosting", trees, base)
        yield Candidate({"max_depth": depth, "rounds": rounds}, config, tensors)


HEADS: dict[str, HeadKind] = {
    "logistic": HeadKind("Logistic regression", _logistic),
    "knn": HeadKind("Nearest neighbours", _neighbours),
    "svm": HeadKind("Linear SVM", _svm),
    "forest": HeadKind("Random forest", _forest),
    "xgboost": HeadKind("XGBoost", _boosting, ("xgboost", "boost")),
}
"""All heads by name, the cheapest and plainest first where it matters little."""

"""Data sets of every awkward shape, and scikit-learn's answer for each metric, as the independent reference."""

import itertools
import warnings

import numpy as np
import sklearn.metrics as reference

CASES = [
    # name, images, classes, classes without images, decimals that the probabilities are rounded to (ties)
    ("balanced", 300, 5, (), None),
    ("imbalanced", 400, 7, (), None),
    ("ties", 250, 4, (), 1),
    ("binary", 120, 2, (), None),
    ("binary with ties", 90, 2, (), 1),
    ("missing classes", 150, 8, (0, 5), None),
    ("missing classes and ties", 150, 6, (5,), 1),
    ("tiny", 9, 3, (), None),
    ("many classes", 900, 196, (), None),
    ("many classes, some missing", 400, 196, (3, 77, 195), 2),
]
CASE_IDS = [case[0] for case in CASES]


def make_case(name, num_images, num_classes, missing, decimals, *, seed=0, skill=1.5):
    """Labels [n] and probabilities [n, C]; every class that is not missing has an image."""
    generator = np.random.default_rng([seed, num_images, num_classes])
    present = np.setdiff1d(np.arange(num_classes), missing)
    shares = 0.5 ** np.arange(len(present)) if name == "imbalanced" else np.ones(len(present))
    labels = np.concatenate(
        [present, generator.choice(present, num_images - len(present), p=shares / shares.sum())]
    ).astype(np.int64)
    generator.shuffle(labels)
    logits = generator.normal(size=(num_images, num_classes))
    logits[np.arange(num_images), labels] += skill
    probabilities = np.exp(logits)
    if decimals is not None:
        probabilities = np.round(probabilities / probabilities.sum(axis=1, keepdims=True), decimals) + 1e-3
    return labels, probabilities / probabilities.sum(axis=1, keepdims=True)


def sklearn_metrics(labels, probabilities):
    """Each scalar metric as scikit-learn has it; macro averages over the classes with images."""
    num_classes = probabilities.shape[1]
    everything, present = np.arange(num_classes), np.unique(labels)
    predicted = probabilities.argmax(axis=1)
    macro = {"labels": present, "average": "macro", "zero_division": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "y_pred contains classes not in y_true", and few samples for many classes
        values = {
            "accuracy": reference.accuracy_score(labels, predicted),
            "balanced_accuracy": reference.balanced_accuracy_score(labels, predicted),
            "macro_precision": reference.precision_score(labels, predicted, **macro),
            "macro_recall": reference.recall_score(labels, predicted, **macro),
            "macro_f1": reference.f1_score(labels, predicted, **macro),
            "weighted_f1": reference.f1_score(labels, predicted, average="weighted", zero_division=0),
            "cohen_kappa": reference.cohen_kappa_score(labels, predicted),
            "quadratic_weighted_kappa": reference.cohen_kappa_score(
                labels, predicted, labels=everything, weights="quadratic"
            ),
            "matthews_correlation": reference.matthews_corrcoef(labels, predicted),
            "log_loss": reference.log_loss(labels, probabilities, labels=everything),
            "brier": reference.brier_score_loss(labels, probabilities, labels=everything),
            "macro_roc_auc": sklearn_macro_auc(labels, probabilities),
            "ece": plain_ece(labels, probabilities),
        }
    for k in (3, 5):
        if k < num_classes:
            values[f"top_{k}_accuracy"] = np.mean(
                [plain_rank(p, y) < k for p, y in zip(probabilities, labels, strict=True)]
            )
    return values


def sklearn_macro_auc(labels, probabilities):
    if probabilities.shape[1] == 2:
        return reference.roc_auc_score(labels, probabilities[:, 1])
    if len(np.unique(labels)) == probabilities.shape[1]:
        return reference.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
    return np.mean([reference.roc_auc_score(labels == c, probabilities[:, c]) for c in np.unique(labels)])


def plain_ece(labels, probabilities, num_bins=15):
    """Guo et al. (2017), written out: bins (m-1)/M < p <= m/M."""
    top, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    edges = np.linspace(0, 1, num_bins + 1)
    total = 0.0
    for low, high in itertools.pairwise(edges):
        inside = (top > low) & (top <= high)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - top[inside].mean())
    return total


def plain_rank(row, label):
    return sorted(range(len(row)), key=lambda c: (-row[c], c)).index(label)

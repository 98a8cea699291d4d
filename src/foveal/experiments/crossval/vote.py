"""The folds' models vote on the test split that was kept aside from all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveal.data.manifest import Manifest
from foveal.data.split import straddling
from foveal.evaluation.evaluate import (
    BATCH_SIZE,
    SplitLogits,
    align_labels,
    groups_of,
    majority_class,
    measure,
    write_evaluation,
)
from foveal.experiments.outcome import headlines_of
from foveal.experiments.shared_data import SharedData
from foveal.inference import Predictor
from foveal.metrics import (
    PairedComparison,
    SplitMetrics,
    compare_paired,
    confusion_matrix,
    epoch_metrics,
    log_loss,
    shown,
)
from foveal.metrics.inputs import checked_groups
from foveal.metrics.intervals import affordable_resamples, resample_counts
from foveal.model.bundle import update_bundle
from foveal.model.voting import Vote, logits_of, voted
from foveal.progress import Progress
from foveal.run_folder import ExperimentFolder, RunFolder
from foveal.training.config import Config

FOLD_VOTES: tuple[Vote, ...] = ("soft", "majority")
NUM_RESAMPLES = 1000
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class FoldVote:
    """What the folds' models say of the kept-aside test, each by itself and together.

    Attributes:
        singles: accuracy, macro F1 and log loss of each fold's model.
        metrics: of each vote.
        best: the name of the fold that is best on its inner validation.
        comparison: the soft vote (second) against that one (first).
        gain: the soft vote's accuracy less the mean of the single ones.
        gain_interval: the 95 % interval of the gain, paired; None where it cannot be had.
        sentences: the result in words.
    """

    singles: Sequence[Mapping[str, float]]
    metrics: Mapping[str, SplitMetrics]
    best: str
    comparison: PairedComparison
    gain: float
    gain_interval: tuple[float, float] | None
    sentences: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            **{vote: metrics.model_dump(mode="json") for vote, metrics in self.metrics.items()},
            "best_single": self.best,
            "soft_against_best_single": self.comparison.to_dict(),
            "soft_less_mean_of_singles": {
                "accuracy": self.gain,
                "interval": None if self.gain_interval is None else list(self.gain_interval),
            },
        }


def vote_on_test(
    folder: ExperimentFolder, shared: SharedData, config: Config, *, names: Sequence[str], best: int, progress: Progress
) -> FoldVote | None:
    """Measure every fold's model and both votes on the kept-aside test, as the bundle of the folds says it.

    Args:
        folder: with the bundle of the folds, each a member.
        shared: the data, with the test split in its manifest.
        config: of the trainings.
        names: of the folds.
        best: place of the fold that did best on its inner validation.
        progress: where to show it.

    Returns:
        What came of it; None where no test split was kept aside.
    """
    manifest = shared.manifest
    rows = manifest.of_split("test")
    if not len(rows):
        return None
    resolved = shared.settled(config)
    predictor = Predictor(folder.bundle, device=resolved.config.train.device)
    with progress.bar("Voting", 1, "splits") as bar:
        by_member = predictor.member_probabilities(
            [resolved.source] * len(names), rows, batch_size=BATCH_SIZE, num_workers=resolved.config.data.num_workers
        )
        bar.advance()
    labels = align_labels(manifest, predictor.class_names)[rows]
    _count_look(RunFolder(folder.path))
    metrics, together = _measured(folder, manifest, predictor, rows, by_member, seed=config.seed)
    update_bundle(folder.bundle, metrics=headlines_of({"test": metrics["soft"]}))
    groups = groups_of(manifest, rows)
    singles = [_plain_metrics(labels, probabilities) for probabilities in by_member]
    comparison = compare_paired(labels, by_member[best], together["soft"], groups=groups, seed=config.seed)
    rights = (by_member.argmax(axis=2) == labels).mean(axis=0)
    gains = (together["soft"].argmax(axis=1) == labels) - rights
    interval = mean_interval(gains, labels, groups, seed=config.seed)
    return FoldVote(
        singles=singles,
        metrics=metrics,
        best=names[best],
        comparison=comparison,
        gain=float(gains.mean()),
        gain_interval=interval,
        sentences=(
            *_sentences(metrics, [each["accuracy"] for each in singles], float(gains.mean()), interval),
            comparison.sentence(f"{names[best]}, the best on its inner validation,", "the soft vote"),
        ),
    )


def _measured(
    folder: ExperimentFolder,
    manifest: Manifest,
    predictor: Predictor,
    rows: NDArray[np.int64],
    by_member: Floats,
    *,
    seed: int,
) -> tuple[dict[str, SplitMetrics], dict[str, Floats]]:
    """The metrics and the probabilities of each vote; both are also written to the folder."""
    labels = align_labels(manifest, predictor.class_names)[rows]
    metrics: dict[str, SplitMetrics] = {}
    together: dict[str, Floats] = {}
    for vote in FOLD_VOTES:
        is_first = vote == FOLD_VOTES[0]
        together[vote] = voted(by_member, vote, [])
        logits = logits_of(together[vote]).astype(np.float32)
        said = SplitLogits("test", rows, labels, logits)
        metrics[vote] = measure(
            said,
            manifest,
            predictor,
            majority_class=majority_class(manifest, predictor.class_names),
            siblings_in_train=straddling(manifest)[rows],
            seed=seed,
            timed=is_first,
        )
        # The same networks take the same time, whatever becomes of their answers; and one set of plots is enough.
        if latency := None if is_first else metrics[FOLD_VOTES[0]].latency_ms:
            metrics[vote] = metrics[vote].with_latency(latency.p50, latency.p95)
        place = folder.path / "evaluation" / f"test-{vote}"
        write_evaluation(place, said, metrics[vote], manifest, 1.0, with_plots=is_first)
    return metrics, together


def _count_look(folder: RunFolder) -> None:
    """Counted before it can be read; once, however often the vote was killed and taken again."""
    if not folder.looks.is_file():
        folder.count_look("test", "crossval")


def mean_interval(
    values: Floats, labels: NDArray[np.int64], groups: NDArray[np.int64] | None, *, seed: int
) -> tuple[float, float] | None:
    """The 95 % bootstrap interval of a mean over images, drawn within classes, or by whole groups.

    Args:
        values: float64 [n], one an image.
        labels: int64 [n], the true classes.
        groups: int64 [n], images that are drawn together; None to draw each by itself.
        seed: of the draw.

    Returns:
        Its ends; None where the resamples are all alike, or all images are of one group.
    """
    clusters = checked_groups(groups, len(values))
    if clusters is not None and int(clusters.max()) == 0:
        return None
    means = np.concatenate(
        [
            (values @ counts) / counts.sum(axis=0)
            for counts in resample_counts(labels, clusters, affordable_resamples(NUM_RESAMPLES, len(values)), seed)
        ]
    )
    low, high = (float(end) for end in np.quantile(means, (0.025, 0.975)))
    return (low, high) if high - low > 1e-12 else None


def _plain_metrics(labels: NDArray[np.int64], probabilities: Floats) -> dict[str, float]:
    confusion = confusion_matrix(labels, probabilities.argmax(axis=1), probabilities.shape[1])
    found = epoch_metrics(confusion)
    return {
        "accuracy": found["accuracy"],
        "macro_f1": found["macro_f1"],
        "log_loss": float(log_loss(labels, probabilities)),
    }


def _sentences(
    metrics: Mapping[str, SplitMetrics], accuracies: Sequence[float], gain: float, interval: tuple[float, float] | None
) -> tuple[str, ...]:
    mean, spread = float(np.mean(accuracies)), float(np.std(accuracies, ddof=1))
    words = f"a single one has {shown(mean)} ± {shown(spread)}, {gain:+.3f}"
    if interval is None:
        words += ", too few images to say how sure that is"
    else:
        words += f" [{interval[0] + 0.0:.3f}, {interval[1] + 0.0:.3f}]"
        if interval[0] > 0:
            words += ": the vote is better than a single one"
        elif interval[1] < 0:
            words += ": the vote is worse than a single one"
        else:
            words += ": these images do not tell them apart"
    soft, majority = metrics["soft"], metrics["majority"]
    return (
        f"Soft vote of all {len(accuracies)} models on the test split that was kept aside: {soft.sentence()}",
        f"On the same images {words}",
        f"Majority vote: {majority.sentence()}",
    )
